"""A session on any CUDA device whose engine is copies alone: each class's score is the frame without its halo."""

import numpy as np

from unetrt.runtime.cuda.driver import Rows
from unetrt.runtime.sessions.cuda import CapturedPass, CudaSession


class CopySession(CudaSession):
    """For specs of float32 input, one channel and scores."""

    def __init__(self, spec, device, scratch=1000):
        assert spec.input_dtype == "float32"
        assert spec.channels == 1
        super().__init__(spec, "copies", device)
        self._scratch = scratch

    def scratch(self):
        return self._scratch

    def new_pass(self, scratch, place):
        return CapturedPass(CopyPass(self.spec, self.cuda.driver, place), place)

    def unload(self):
        pass


class CopyPass:
    def __init__(self, spec, driver, place):
        self.spec, self.driver, self.place = spec, driver, place

    def enqueue(self):
        spec, (height, width), (core_height, core_width) = self.spec, self.spec.tile, self.spec.core
        item = np.dtype(np.float32).itemsize
        inside = item * (spec.halo * width + spec.halo)
        for tile in range(spec.batch):
            source = Rows(self.place.input + item * tile * height * width + inside, item * width)
            for plane in range(len(spec.classes)):
                number = tile * len(spec.classes) + plane
                target = Rows(self.place.output + item * number * core_height * core_width, item * core_width)
                self.driver.copy_rows(target, source, item * core_width, core_height, self.place.stream.handle)

    def close(self):
        pass
