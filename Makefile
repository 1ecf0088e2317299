# Everything here sets itself up: a virtual environment in .venv with the CPU build of torch.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The CPU build where the index offers it; the version that the tests were written against.
TORCH := torch==2.13.0
# Its PTX is understood by all drivers for CUDA 12; a newer one's is not.
NVRTC := nvidia-cuda-nvrtc-cu12==12.0.140

# Each process loads torch, and a file runs in one process: more than 8 take memory and gain little.
SIDE_BY_SIDE := -n auto --maxprocesses 8 --dist loadfile

.PHONY: demo test test-portable test-without-bfloat16 test-without-vectors test-on-one-core test-slow fuzz gpu-check gpu-pack model-nuclei kernels docs wheel lint format bench bench-weights bench-augmentation bench-host bench-decoding bench-saving bench-blocks bench-live bench-throughput bench-decision bench-accounting bench-cpu bench-small bench-page soak clean

demo: $(READY)  ## draw cells, train, export, segment, check: leaves demo-out/
	$(BIN)/unetrt demo --out demo-out

test: $(READY)  ## the tests, about eleven minutes on 2 cores
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not alone and not slow and not gpu"
	$(BIN)/python -m pytest -m "alone and not slow and not gpu" $$(grep -rl --include="test_*.py" "mark\.alone" tests)

# The tests whose results depend on arithmetic: what trains, exports, infers and compares floats.
ARITHMETIC := -m "not alone and not slow and not gpu" \
  tests/trainer tests/export tests/benchmarks tests/runtime/test_exactness.py tests/runtime/test_openvino.py \
  tests/runtime/test_scores.py tests/cli/test_commands.py tests/test_docs.py tests/test_readme.py

# torch without bfloat16 and AVX-512, as on older processors; torch and NumPy also without any vector instructions that
# they can do without; a single core. oneDNN keeps AVX2: with less, OpenVINO 2026.4 loads no network with an ArgMax on a
# processor that has more ("bad combination"). A setting that fails does not keep the next from running.
test-portable: $(READY)  ## the tests that depend on arithmetic, as on three other processors, one after the other
	$(MAKE) --keep-going -j1 test-without-bfloat16 test-without-vectors test-on-one-core

test-without-bfloat16: $(READY)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARITHMETIC)

test-without-vectors: $(READY)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=default NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL AVX512_SPR" \
	  $(BIN)/python -m pytest $(SIDE_BY_SIDE) -W default::ImportWarning $(ARITHMETIC)

test-on-one-core: $(READY)
	OMP_NUM_THREADS=1 taskset -c 0 $(BIN)/python -m pytest $(ARITHMETIC)

test-slow: $(READY)  ## the tests that train or measure for minutes
	$(BIN)/python -m pytest -m slow

fuzz: $(READY)  ## 10,000 damaged files and odd options, an hour on 2 cores; CASES=, SEED=; findings in build/fuzz
	$(BIN)/python -m tests.fuzz --cases $(or $(CASES),10000) --seed $(or $(SEED),0)

# Steps, seconds and a host without a network: docs/gpu-check.md. STEPS: all by default. DRY=1: without a GPU, here.
SECONDS :=
STEPS :=
gpu-check: $(if $(DRY),$(READY))  ## the steps that need a GPU; PYTHON= names an interpreter with torch and unetrt
	$(if $(DRY),$(BIN)/python,$(PYTHON)) -m unetrt.benchmarks.gpu_check $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(OUT),--out "$(OUT)") $(if $(DRY),--dry) $(if $(filter-out 0,$(RESUME)),--resume) $(STEPS)

gpu-pack: $(READY)  ## parts for a GPU's host without a network, in .gpu; RTX=1: TensorRT for RTX too
	$(BIN)/python benchmarks/gpu_host/pack.py $(if $(RTX),--rtx)

DATA := ../shared/data/nuclei
model-nuclei: $(READY)  ## train the model that comes with unetrt on the images of DATA
	$(BIN)/python docs/nuclei_model.py $(DATA)

kernels:  ## runtime/segment/kernels.ptx from kernels.cu, on Linux; needs no GPU
	$(PYTHON) -m pip install -q --no-deps --upgrade --target build/nvrtc $(NVRTC)
	$(PYTHON) docs/kernels.py build/nvrtc

docs: $(READY)  ## the API reference, made from the docstrings: build/docs/index.html
	$(BIN)/python docs/api.py build/docs

# A folder `build` of an earlier version would put its files into the wheel.
wheel: $(READY)  ## the wheel and its software bill of materials (CycloneDX), in dist
	rm -rf build
	$(BIN)/python docs/wheel.py dist

lint: $(READY)  ## ruff, and mypy on the package as it installs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build && $(BIN)/python -m pip install -q --no-deps --no-build-isolation --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p unetrt
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml ../../examples

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One after the other, and the page even where one missed its floor.
bench: $(READY)  ## all benchmarks, on a machine without other load: JSON in benchmarks/results, and docs/benchmarks.md
	$(MAKE) --keep-going -j1 bench-weights bench-augmentation bench-host bench-decoding bench-saving bench-blocks bench-live bench-throughput bench-decision bench-accounting bench-cpu bench-small bench-page

bench-weights: $(READY)  ## the weight map, beside a distance transform for each object
	$(BIN)/python -m unetrt.benchmarks weight-map --json benchmarks/results/weight-map.json

bench-augmentation: $(READY)  ## augmented training tiles, beside SciPy
	$(BIN)/python -m unetrt.benchmarks augmentation --json benchmarks/results/augmentation.json

bench-decoding: $(READY)  ## class maps to objects, beside the first version, on one core
	$(BIN)/python -m unetrt.benchmarks decoding --json benchmarks/results/decoding.json

bench-saving: $(READY)  ## 100,000 objects as each kind of file of --save, on one core
	$(BIN)/python -m unetrt.benchmarks saving --json benchmarks/results/saving.json

bench-blocks: $(READY)  ## an image in blocks: speed and memory; half an hour on 2 cores
	$(BIN)/python -m unetrt.benchmarks blocks --json benchmarks/results/blocks.json
	$(BIN)/python -m unetrt.benchmarks block-memory --json benchmarks/results/block-memory.json

bench-host: $(READY)  ## the host's work on each frame, on one core
	$(BIN)/python -m unetrt.benchmarks host-path --json benchmarks/results/host.json

demo-out/model.onnx:
	$(MAKE) demo

bench-live: $(READY) demo-out/model.onnx  ## how long `submit` blocks a camera while the model computes without a pause
	$(BIN)/python -m unetrt.benchmarks live demo-out/model.onnx --json benchmarks/results/live.json

# A network so small that frames flow.
demo-out/small/model.onnx: demo-out/model.onnx
	rm -rf demo-out/small
	$(BIN)/unetrt train demo-out/data/train --val demo-out/data/val -o demo-out/small --depth 2 --base 8 --steps 300

bench-throughput: $(READY) demo-out/small/model.onnx  ## frames whose objects are numbered while the next frame is segmented
	$(BIN)/python -m unetrt.benchmarks throughput demo-out/small/model.onnx --backend openvino \
	  --threads $$(nproc --ignore=1) --json benchmarks/results/throughput.json

bench-decision: $(READY) demo-out/small/model.onnx  ## from a camera's frame to the next event, in Micro-Manager's core
	$(BIN)/python -m unetrt.benchmarks decision demo-out/small/model.onnx --json benchmarks/results/decision.json

bench-accounting: $(READY) demo-out/small/model.onnx  ## 100,000 frames of Micro-Manager's core, all accounted for
	$(BIN)/python -m unetrt.benchmarks accounting demo-out/small/model.onnx --json benchmarks/results/accounting.json

# Least speed-ups over the usual loop, and over MONAI.
FLOORS := onnxruntime=2.6 openvino-bf16=5.5 onnxruntime/monai=4.5 openvino-bf16/monai=9

# The history keeps a run even if it missed a floor, and each run once.
bench-cpu: $(READY)  ## the usual loop and other engines against unetrt, on this machine
	$(BIN)/unetrt bench --device cpu --frame 2048x2048 $(FLOORS:%=--floor %) --json benchmarks/results/cpu.json \
	  --png docs/benchmarks.png; \
	status=$$?; $(BIN)/python -m unetrt.benchmarks history benchmarks/results/cpu.json && exit $$status

bench-small: $(READY)  ## the same for small frames, where overhead shows
	$(BIN)/unetrt bench --device cpu --frame 512x512 --only onnxruntime --only openvino --only openvino-bf16 \
	  --floor onnxruntime=2 --floor openvino-bf16=2 --json benchmarks/results/cpu-512.json; \
	status=$$?; $(BIN)/python -m unetrt.benchmarks history benchmarks/results/cpu-512.json && exit $$status

bench-page: $(READY)  ## docs/benchmarks.md from benchmarks/results
	$(BIN)/python docs/benchmarks.py

soak: $(READY)  ## ten minutes of twice as many frames as can be segmented
	UNETRT_SOAK_SECONDS=600 $(BIN)/python -m pytest -s -o faulthandler_timeout=900 tests/runtime/live/test_soak.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "setuptools>=77" $(TORCH)
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[cpu,train,export,bench,tensorboard,zarr,distributed,formats,rois,parquet,acquire,view,dev]"
	touch $@

clean:
	rm -rf build demo-out .pytest_cache .mypy_cache .ruff_cache *.egg-info
