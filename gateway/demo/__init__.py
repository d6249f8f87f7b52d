"""The demo: the main job on this machine. `stage` sets up, `script` runs commands, `cast` are the devices."""
