"""Cameras: `unrain live` derains a stream as it comes in. Needs the extra `video`."""
