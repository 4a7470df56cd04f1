"""What the LLaVA-like families share: a CLIP image encoder whose patches go into the prompt.

The tower is a model of its own: `mm_vision_tower` in a checkpoint's `config.json` names a folder or
a model on the hub. Source of the layout: LLaVA's `clip_encoder.py` and `mm_utils.py`
(haotian-liu/LLaVA), which MobileVLM (Meituan-AutoML/MobileVLM) took over.

What this module does not know: towers that are not CLIP, and pictures cut into tiles ("anyres").
"""

import functools
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaImageProcessorPil

from helpers.errors import CheckpointError
from helpers.graphs.parts import Part, Traceable, part_of_one_size
from helpers.models.base import VisionLanguageModel, WeightFiles
from helpers.models.budgets import PicturePieces
from helpers.models.exported import Features, ImageInputs
from helpers.models.processors import Processor
from helpers.models.squares import cropped_square, padded_square
from helpers.sources.checkpoints import (
    Config,
    as_json,
    pixel_settings,
    preparation,
    read_config,
)
from helpers.sources.hub import download
from helpers.sources.key_mapping import Rule
from helpers.sources.tensors import open_tensors

# IMAGE_TOKEN_INDEX in the authors' constants.py: no token, only a mark among the ids
PLACEHOLDER = -200
SMALL_FILES = ("config.json", "preprocessor_config.json")
SAFETENSORS, BIN = "model*.safetensors*", "pytorch_model*.bin*"
TOWER_NAMES, PROJECTOR_NAMES, VISION_NAMES = "vision_tower.", "mm_projector.", "vision_model."
_VISION_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)


class ClipProcessor(Processor):
    """Square pictures for CLIP, and a placeholder in the prompt for each row of their features.

    `config` gets a `vision_config` and `pixels`, the tower's own, unless it has the first; so a
    folder whose `config.json` was written from here needs no tower beside it.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        if "vision_config" not in config:
            tower = tower_folder(folder, config.get("mm_vision_tower"), *SMALL_FILES)
            vision = read_config(tower)
            pixels = pixel_settings(preparation(tower))
            pixels.pop("resample", None)  # `square` has it done
            config = config | {"vision_config": vision.get("vision_config", vision)}
            config |= {"pixels": pixels} if pixels else {}
        super().__init__(folder, config)

    @cached_property
    def vision_config(self) -> CLIPVisionConfig:
        """The tower's config with only the layers up to the selected hidden state."""
        tower = self.config["vision_config"]
        config = CLIPVisionConfig(**{name: tower[name] for name in _VISION_FIELDS if name in tower})
        layers, select = config.num_hidden_layers, self.config["mm_vision_select_layer"]
        # Hidden state 0 is what goes into the first layer, so there is one more than layers.
        number = select if select >= 0 else layers + 1 + select
        if not 0 <= number <= layers:
            raise CheckpointError(
                f"mm_vision_select_layer in config.json is {select}, but the image encoder has "
                f"{layers} layers; use the tower that the checkpoint was trained with."
            )
        feature = self.config.get("mm_vision_select_feature", "patch")  # clip_encoder.py
        if feature != "patch":
            raise CheckpointError(
                f"mm_vision_select_feature in config.json is {as_json(feature)}, and only "
                '"patch" is read here; use a checkpoint that has it.'
            )
        config.num_hidden_layers = number
        return config

    @property
    def side(self) -> int:
        """The side in pixels of the square that the image encoder takes."""
        return cast(int, self.vision_config.image_size)

    @property
    def patches_per_side(self) -> int:
        """How many patches the image encoder sees in each direction."""
        return self.side // cast(int, self.vision_config.patch_size)

    @property
    @abstractmethod
    def tokens_per_picture(self) -> int:
        """How many rows of features the projector gives for one picture."""

    @property
    def pieces(self) -> PicturePieces:
        """One square, whatever the picture's size."""
        return PicturePieces("picture", self.tokens_per_picture)

    @property
    def image_token_id(self) -> int:
        """The mark among the ids where a row of picture features goes; it is below all tokens."""
        return PLACEHOLDER

    @cached_property
    def image_processor(self) -> LlavaImageProcessorPil:
        """CLIP's preprocessing, with the picture padded to a square first where config says so."""
        return LlavaImageProcessorPil(
            size={"shortest_edge": self.side},
            crop_size={"height": self.side, "width": self.side},
            do_pad=self.config.get("image_aspect_ratio") == "pad",
            **self.config.get("pixels", {}),
        )

    def square(self, picture: Image.Image) -> Image.Image:
        """Return a picture as the square that the image encoder sees: padded, or its middle."""
        if not self.image_processor.do_pad:
            return cropped_square(picture, self.side)
        means: Sequence[float] = self.image_processor.image_mean
        return padded_square(picture, self.side, [int(mean * 255) for mean in means])

    def pixels(self, pictures: list[Image.Image]) -> ImageInputs:
        """Return `pixel_values` (pictures, 3, side, side)."""
        squares = [self.square(picture) for picture in pictures]
        options = {"do_pad": False, "do_resize": False, "do_center_crop": False}  # it is done
        output = cast(Any, self.image_processor)(squares, return_tensors="pt", **options)
        return {"pixel_values": output["pixel_values"]}

    def image_strings(self, image_inputs: ImageInputs) -> list[list[int]]:
        """Return for each picture a placeholder for every row of its features."""
        return [[PLACEHOLDER] * self.tokens_per_picture for _ in image_inputs["pixel_values"]]

    def embed(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: Features | None = None,
    ) -> Tensor:
        """Return a prompt's embeddings; a placeholder may stand for a row or for a picture."""
        if features is not None:
            input_ids = self.expand(input_ids, features)
        return super().embed(input_ids, embed_tokens, features)

    def expand(self, input_ids: Tensor, features: Features) -> Tensor:
        """Return ids (1, length) with a placeholder for every row of `features`.

        In the authors' form one placeholder stands for a whole picture; ids that have room for
        every row already are returned as they are.
        """
        places = self.picture_positions(input_ids)
        if int(places.sum()) != len(features):
            return input_ids
        repeats = torch.ones_like(input_ids)
        repeats[places] = torch.tensor([len(rows) for rows in features])
        return input_ids.repeat_interleave(repeats[0], dim=1)


P = TypeVar("P", bound=ClipProcessor)


class ClipLanguageModel(VisionLanguageModel[P]):
    """A CLIP image encoder; a family adds its `projector` and its `language_model`."""

    image_encoder: CLIPVisionModel
    projector: nn.Module

    def build(self, config: Config) -> None:
        """Create the image encoder."""
        self.config = self.processor.config
        self.image_encoder = CLIPVisionModel(self.processor.vision_config)

    def rules(self) -> list[Rule]:
        """Return the names of the image encoder, which are CLIP's own."""
        return [Rule(VISION_NAMES + "{x}", "image_encoder.{x}")]

    @property
    def tower_is_inside(self) -> bool:
        """Whether the image encoder was trained too, so that one in the checkpoint counts."""
        return False

    def original_tensors(self, folder: Path) -> dict[str, Tensor]:
        """Return the checkpoint's tensors and those of the tower's used layers (`vision_model.`).

        The tower and the projector come back in one type, the more precise of theirs, as a tower
        is often in float32 where the checkpoint is not.
        """
        tensors = super().original_tensors(folder)
        inside = {name: tensors.pop(name) for name in list(tensors) if TOWER_NAMES in name}
        trained = inside if self.tower_is_inside else {}
        encoder = vision_tensors(
            trained or tower_tensors(folder, self.config["mm_vision_tower"]),
            layers=self.image_encoder.config.num_hidden_layers,
        )
        encoder |= {name: tensor for name, tensor in tensors.items() if PROJECTOR_NAMES in name}
        types = {tensor.dtype for tensor in encoder.values()}
        dtype = functools.reduce(torch.promote_types, types, torch.bool)  # bool is below all others
        return tensors | {name: tensor.to(dtype) for name, tensor in encoder.items()}

    def layout(self) -> list[WeightFiles]:
        """Return the tower in its own folder, and all else in PyTorch's own format."""
        tensors = super().layout()[0].tensors
        tower = {name: tensors.pop(name) for name in list(tensors) if name.startswith(VISION_NAMES)}
        of_tower = ("vision_config", "pixels")
        config = {name: value for name, value in self.config.items() if name not in of_tower}
        vision = self.config["vision_config"]
        return [
            WeightFiles(tower, folder=config["mm_vision_tower"], config=vision),
            WeightFiles(tensors, ending="bin", config=config),
        ]

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Return features (pictures, tokens, hidden): drop CLS, project the patches."""
        patches = self.image_encoder(pixel_values).last_hidden_state[:, 1:]
        return cast(Tensor, self.projector(patches))

    def image_encoder_part(self) -> Part:
        """Return CLIP with the projector: any number of pictures of one fixed size."""
        side = self.processor.side
        module = Traceable(self.encode_images, self.image_encoder, self.projector)
        return part_of_one_size(module, side)


# Finding and reading the tower


def tower_folder(folder: Path, name: str | None, *patterns: str) -> Path:
    """Return the folder of the CLIP model called `name`, with its files that match `patterns`.

    It is looked for in the checkpoint's `folder`, beside it (by full name and by its last part),
    and then in the Hugging Face cache and on the hub. Raises `CheckpointError` if it is nowhere.
    """
    if not isinstance(name, str) or not name:
        raise CheckpointError("config.json names no image encoder; set mm_vision_tower.")
    for place in tower_places(Path(folder), {"mm_vision_tower": name}):
        return place
    folder = Path(folder).resolve()
    try:
        return download(name, files=patterns)
    except CheckpointError as error:
        raise CheckpointError(
            f"The image encoder {name} is neither in {folder} nor beside it; put its folder beside "
            f"the checkpoint's, since the hub does not give it: {error}"
        ) from None


def tower_places(folder: Path, config: Config) -> list[Path]:
    """Return where the CLIP model that a checkpoint's config names is on this computer, if it is.

    The first place counts.
    """
    name, folder = str(config.get("mm_vision_tower")), folder.resolve()
    places = (folder / name, folder.parent / name, folder.parent / Path(name).name)
    for place in places:
        with suppress(OSError, ValueError):  # of names that no folder can have, or a closed one has
            if (place / "config.json").exists():
                return [place]
    return []


def tower_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Map the tensors of the CLIP model called `name` into memory; see `tower_folder`."""
    place = tower_folder(folder, name, *SMALL_FILES, SAFETENSORS)
    if not any(place.glob(SAFETENSORS)):  # not every model has them
        place = tower_folder(folder, name, *SMALL_FILES, BIN)
    return open_tensors(place)


def vision_tensors(tensors: Mapping[str, Tensor], *, layers: int) -> dict[str, Tensor]:
    """Return what `layers` layers of an image encoder need, as `vision_model.` and CLIP's names.

    Left out are CLIP's text side, deeper layers, and the position numbers that older files hold.
    """
    plain: Mapping[str, Tensor] = {
        name.split(VISION_NAMES)[-1]: tensor
        for name, tensor in tensors.items()
        if VISION_NAMES in name
    }
    plain = plain or tensors  # a file of the image encoder alone may go without the prefix
    encoder_tensors = {name: tensor for name, tensor in plain.items() if _is_used(name, layers)}
    return {VISION_NAMES + name: tensor for name, tensor in encoder_tensors.items()}


def _is_used(name: str, layers: int) -> bool:
    layer = re.match(r"encoder\.layers\.(\d+)\.", name)
    return name != "embeddings.position_ids" and (layer is None or int(layer[1]) < layers)
