"""The page and the HTTP API: `unrain serve`. Needs the extra `web`."""
