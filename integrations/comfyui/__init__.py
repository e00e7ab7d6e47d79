"""A node for ComfyUI: takes the rain out of pictures with unrain, on the processor."""

from functools import lru_cache

import numpy as np
import torch

import unrain


@lru_cache(maxsize=2)
def _derainer(model: str, recursions: int, levels: int) -> unrain.Derainer:
    return unrain.Derainer(model, recursions=recursions or None, levels=levels or None)


class UnrainDerain:
    """Derains a batch; every picture goes through the same `Derainer` as unrain's own command."""

    CATEGORY = "image/restoration"
    FUNCTION = "derain"
    RETURN_TYPES = ("IMAGE", "IMAGE")
    RETURN_NAMES = ("derained", "rain")
    DESCRIPTION = "Takes the rain out of photographs: offline, without a GPU."

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802  (ComfyUI's name)
        """Name the node's inputs; models that the user added with `unrain models add` are among them."""
        models = [model.name for model in unrain.models()]
        return {
            "required": {
                "image": ("IMAGE",),
                "model": (models, {"default": models[0]}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.5, "step": 0.05}),
            },
            "optional": {
                "recursions": ("INT", {"default": 0, "min": 0, "max": 20, "tooltip": "0: the model's own"}),
                "levels": ("INT", {"default": 0, "min": 0, "max": 8, "tooltip": "0: chosen by the size"}),
            },
        }

    def derain(
        self, image: torch.Tensor, model: str, strength: float, recursions: int = 0, levels: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Derain N x H x W x C in [0, 1]; channels beyond RGB stay as they are.

        Returns:
            The derained pictures, and the rain that was taken away, both of the same shape.
        """
        derainer = _derainer(model, recursions, levels)
        rainy = image.detach().cpu().float().clamp(0, 1).numpy()
        derained = rainy.copy()
        for number, picture in enumerate(rainy):
            rgb = np.ascontiguousarray(picture[..., :3])
            derained[number, ..., :3] = derainer.derain(rgb).at(strength)
        rain = np.maximum(rainy - derained, 0)
        return torch.from_numpy(derained), torch.from_numpy(rain)


NODE_CLASS_MAPPINGS = {"UnrainDerain": UnrainDerain}
NODE_DISPLAY_NAME_MAPPINGS = {"UnrainDerain": "Take the rain out (unrain)"}
