"""A session on the fake device whose engine crops, as the reference session does, late and in two steps."""

import numpy as np

from tests.runtime.cuda.fake_driver import FakeDriver
from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.sessions.cpu import CropSession
from unetrt.runtime.sessions.cuda import CudaSession


class FakeCudaSession(CudaSession):
    """Its scratch memory holds the number of the lane that computes: a second one in it is a violation."""

    def __init__(self, spec, driver=None, scratch=64):
        self.driver = driver or FakeDriver()
        super().__init__(spec, "fake engine", CudaDevice(self.driver))
        self._scratch, self.loaded = scratch, True
        self.crop = CropSession(spec)

    def scratch(self):
        return self._scratch

    def new_pass(self, scratch, place):
        return FakePass(self, scratch, place)

    def unload(self):
        self.loaded = False


class FakePass:
    def __init__(self, session, scratch, place):
        self.session, self.scratch, self.place = session, scratch, place
        self.closed = False

    def enqueue(self):
        driver, stream = self.session.driver, self.place.stream.handle
        driver.compute(stream, self._begin)
        driver.compute(stream, self._end)

    def close(self):
        self.closed = True

    def _begin(self):
        if self.scratch:
            self.session.driver.array(self.scratch.handle, (1,), np.int64)[:] = self.place.stream.handle

    def _end(self):
        session, spec = self.session, self.session.spec
        driver = session.driver
        if self.scratch and driver.array(self.scratch.handle, (1,), np.int64)[0] != self.place.stream.handle:
            driver.violations.append("two lanes computed in the same scratch memory at once")
        like_in, like_out = spec.new_input(), spec.new_output()
        frames = driver.array(self.place.input, like_in.shape, like_in.dtype)
        session.crop.compute(frames, driver.array(self.place.output, like_out.shape, like_out.dtype))
