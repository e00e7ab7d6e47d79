"""Damaged videos, and videos whose frames change their size midway."""

import av

from attack import seeds
from attack.files import folder_run
from attack.mutate import mutant
from attack.process import unrain, watched
from toys_video import clip

_BATCH = 8
_PIXELS = 100_000
_OPTIONS = ([], [], ["--no-neighbours"], ["--duration", "0.1"], ["--strength", "0.5"], ["--start", "0.08"])


def attack(campaign):
    """Batches of damaged videos, a few a process."""
    model = seeds.model_file(campaign.fresh("model"))
    sound = seeds.videos(campaign.fresh("videos"))
    _growing(campaign, model)
    while campaign.more():
        cases = {}
        for number in range(campaign.room(_BATCH)):
            name = campaign.random.choice(list(sound))
            cases[f"m{number:03}-{name}"] = mutant(campaign.random, sound[name], list(sound.values()))
        options = ["--max-pixels", _PIXELS, *campaign.random.choice(_OPTIONS)]
        folder_run(campaign, model, cases, options, video_problem, cpu=30 + 10 * len(cases))


def video_problem(path, source):
    """Play a result."""
    # What is only read is written as Matroska.
    path = path if path.exists() else path.with_suffix(".mkv")
    try:
        with av.open(str(path)) as video:
            frames = sum(1 for _ in video.decode(video=0))
    except Exception as error:
        return f"cannot be played ({error!r})"
    return None if frames else "has no frames"


def _growing(campaign, model):
    """A stream that is small at first and then larger than --max-pixels allows."""
    folder = campaign.fresh("growing")
    sizes = (48, 32), (640, 480)
    parts = [clip(folder / f"{w}.ts", frames=6, size=(w, h), sound=False) for w, h in sizes]
    whole = folder / "growing.ts"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    ran = watched(unrain(whole, "--model", model, "--threads", "1", "--max-pixels", _PIXELS))
    campaign.count(cases=1, refused=int(ran.code == 1))
    if ran.code != 1:
        detail = f"{ran.err}\na frame above --max-pixels: exit code {ran.code}"
        campaign.fault("false success", detail, {whole.name: whole.read_bytes()})
