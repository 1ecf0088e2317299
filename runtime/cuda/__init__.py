"""CUDA behind one narrow contract: devices, streams, events, memory, graphs and kernels."""
