"""Cameras of Micro-Manager's demo configuration, alone and two at once."""


def two_cameras(core, width=96, height=64):
    """Make two demo cameras of different pictures the camera of a core, as one (Utilities, "Multi Camera")."""
    core.loadDevice("Camera2", "DemoCamera", "DCam")
    core.loadDevice("Both", "Utilities", "Multi Camera")
    core.initializeDevice("Camera2")
    core.initializeDevice("Both")
    for name, mode in (("Camera", "Artificial Waves"), ("Camera2", "Noise")):
        core.setProperty(name, "PixelType", "16bit")
        core.setProperty(name, "OnCameraCCDXSize", width)
        core.setProperty(name, "OnCameraCCDYSize", height)
        core.setProperty(name, "Mode", mode)
    core.setProperty("Both", "Physical Camera 1", "Camera")
    core.setProperty("Both", "Physical Camera 2", "Camera2")
    core.setCameraDevice("Both")
    core.setExposure(5)
