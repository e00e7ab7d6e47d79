"""`unrain serve`."""

from typing import Annotated

from cyclopts import Parameter, validators

from unrain.cli.output import error_line, extra


def serve(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 8000,
    open_browser: Annotated[bool, Parameter(name="--open")] = False,
    model: tuple[str, ...] = (),
    device: str = "auto",
    precision: str = "auto",
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    allow_host: tuple[str, ...] = (),
    max_bytes: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 25_000_000,
    max_pixels: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 40_000_000,
    queue: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 8,
    timeout: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 300,
    max_video_bytes: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 500_000_000,
    max_video_frames: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 18_000,
    video_queue: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 4,
    video_keep: Annotated[float, Parameter(validator=validators.Number(gte=1))] = 600,
    isolate: Annotated[bool | None, Parameter(negative="--no-isolate")] = None,
    drain: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 30,
    notice: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 0,
) -> None:
    """Serve a page and an HTTP API for pictures and videos.

    Args:
        host: Address to listen on; by default only this computer can reach it.
        port: Port to listen on, 0 for any free one.
        open_browser: Open the page in the browser.
        model: A model to offer, as a name from unrain models or an ONNX file; may be given several times,
            the default first. All that come with unrain by default.
        device: What the models run on, see unrain devices; auto for the fastest that works.
        precision: What they compute in: fp32, fp16 or bf16; auto for what the device is best at.
        threads: CPU threads, 0 for all.
        allow_host: A host name that the server answers to, besides addresses; may be given several times.
        max_bytes: Refuse pictures whose file is larger.
        max_pixels: Refuse pictures, and videos of frames, with more pixels.
        queue: How many pictures may wait.
        timeout: Seconds that a picture may take, including waiting.
        max_video_bytes: Refuse videos whose file is larger; 0 to take no videos.
        max_video_frames: Refuse videos with more frames; the default is ten minutes of 30 a second.
        video_queue: How many videos may wait.
        video_keep: Seconds after which a video that nobody asks about is deleted, done or not.
        isolate: Decode and derain in a process of their own with limits of memory and time, which is started
            again if a picture breaks it. By default where other computers can reach the server.
        drain: Seconds after SIGTERM in which what is there may be finished, and videos fetched; 0 to end at
            once.
        notice: Seconds after SIGTERM, before that, in which pictures are still taken while /readyz already
            says draining: time for a proxy to notice.
    """
    with extra("web", "serve"):
        from unrain import zoo
        from unrain.devices import Processor
        from unrain.web import server
        from unrain.web.queue import Limits

        server.serve(
            host=host,
            port=port,
            models=[zoo.find(name) for name in model] or None,
            processor=Processor(device, precision, threads),
            limits=Limits(
                upload=max_bytes,
                pixels=max_pixels,
                queue=queue,
                timeout=timeout,
                video_size=max_video_bytes,
                video_frames=max_video_frames,
                video_queue=video_queue,
                video_keep=video_keep,
            ),
            hosts=allow_host,
            say=error_line,
            open_browser=open_browser,
            isolate=isolate,
            drain=drain,
            notice=notice,
        )
