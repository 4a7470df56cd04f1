"""MobileVLM and MobileVLM V2: CLIP, a projector that makes four tokens one, and MobileLLaMA.

Source of the layout: the authors' `mobilellama.py`, `vision_projector.py` and `conversation.py`
(Meituan-AutoML/MobileVLM); the numbers all come from a checkpoint's `config.json`.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import hardsigmoid, hardswish, relu
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from helpers.inputs.prompts import IMAGE, SYSTEM_WORDS, Template
from helpers.models.clip import ClipLanguageModel, ClipProcessor, tower_places
from helpers.models.families import Family, Original, SmallTokenizer
from helpers.models.processors import Runtime
from helpers.sources.checkpoints import Config, check_choice
from helpers.sources.key_mapping import Rule
from helpers.upstream.transformers import new_config

# `conv_vicuna_v1` in the authors' conversation.py, called "v1"
TEMPLATE = Template(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    ),
    user="USER: ",
    user_end=" ",
    assistant="ASSISTANT:",
    before_answer=" ",
    assistant_end="</s>",
    images=IMAGE + "\n",
    system_form=SYSTEM_WORDS + " ",
)

# What stands behind a question that is to be answered briefly (LLaVA-1.5's training data).
SHORT_ANSWER = "Answer the question using a single word or phrase."


class MobileVLMProcessor(ClipProcessor):
    """Pictures padded to a square, and Vicuna's conversation."""

    def load_tokenizer(self) -> LlamaTokenizer:
        """Return Llama's tokenizer, which has no tokens for pictures.

        It begins with BOS, and text after `</s>` gets a space in front (`legacy`): so did the
        tokenizer of transformers 4.33, the release that the authors used.
        """
        tokenizer: LlamaTokenizer = LlamaTokenizer.from_pretrained(
            self.folder, add_bos_token=True, legacy=True
        )
        return tokenizer

    @property
    def template(self) -> Template:
        """The authors' `v1`."""
        return TEMPLATE

    @property
    def runtime(self) -> Runtime:
        """Why others do not load it."""
        return Runtime("OpenVINO GenAI cuts a picture to a square, which this family pads")

    @property
    def context_length(self) -> int:
        """How many positions MobileLLaMA was trained with."""
        return cast(int, self.config["max_position_embeddings"])

    @property
    def projector_class(self) -> type["LdpProjector | LdpV2Projector"]:
        """The projector that `config.json` names; the authors' default is the first one."""
        name = self.config.get("mm_projector_type", "ldpnet")
        check_choice("projector", name, PROJECTORS)
        return PROJECTORS[name]

    @property
    def tokens_per_picture(self) -> int:
        """How many rows of features the projector leaves of the patches."""
        return self.projector_class.side_after(self.patches_per_side) ** 2


class MobileVLM(ClipLanguageModel[MobileVLMProcessor]):
    """CLIP, an LDP projector, and MobileLLaMA, which is a small Llama."""

    processor_class = MobileVLMProcessor
    projector: "LdpProjector | LdpV2Projector"

    def build(self, config: Config) -> None:
        """Create the image encoder, the projector and the language model."""
        super().build(config)
        text_config = new_config(
            LlamaConfig, **{name: config[name] for name in _TEXT_FIELDS if name in config}
        )
        vision_width = self.processor.vision_config.hidden_size
        self.projector = self.processor.projector_class(vision_width, text_config.hidden_size)
        self.language_model = LlamaForCausalLM(text_config)

    def rules(self) -> list[Rule]:
        """Return the names of the image encoder, the projector and the language model."""
        return [*super().rules(), *self.projector.rules(), *_TEXT_RULES]

    @property
    def tower_is_inside(self) -> bool:
        """Whether the image encoder was trained too, which began with V2."""
        return isinstance(self.projector, LdpV2Projector)


# Projectors


class LdpProjector(nn.Module):
    """The lightweight downsample projector of MobileVLM: an MLP and two convolution blocks.

    Takes patches (pictures, n * n, width of the image encoder) and returns a quarter of them in
    the width of the language model.
    """

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.mlp = _mlp(vision_width, width)
        self.blocks = nn.Sequential(LdpBlock(width, stride=1), LdpBlock(width, stride=2))

    def forward(self, patches: Tensor) -> Tensor:
        """Return features (pictures, tokens, width)."""
        return _to_tokens(self.blocks(_to_grid(self.mlp(patches))))

    @staticmethod
    def side_after(side: int) -> int:
        """Return the grid's side after the convolution of stride 2, which rounds up."""
        return (side + 1) // 2

    def rules(self) -> list[Rule]:
        """Return the authors' names: numbers of layers in nested sequences."""
        original = "model.mm_projector.model."
        rules = [
            Rule(original + "mlp.1.{x}", "projector.mlp.0.{x}"),
            Rule(original + "mlp.3.{x}", "projector.mlp.2.{x}"),
        ]
        names = {
            "0.0": "depthwise",
            "0.1": "norm_1",
            "1.fc1": "squeeze",
            "1.fc2": "excite",
            "2.0": "pointwise",
            "2.1": "norm_2",
        }
        for number in range(len(self.blocks)):
            block = (
                f"{original}mb_block.{number + 1}.block."  # the authors' number 0 is an identity
            )
            rules += [
                Rule(block + name + ".{x}", f"projector.blocks.{number}.{native}.{{x}}")
                for name, native in names.items()
            ]
        return rules


class LdpBlock(nn.Module):
    """A depthwise and a pointwise convolution with squeeze-and-excitation between them.

    With stride 1 the input is added to the output; with stride 2 the grid's sides are halved.
    (MobileNetV3's inverted residual without its expansion.)
    """

    def __init__(self, width: int, *, stride: int) -> None:
        super().__init__()
        self.is_residual = stride == 1
        self.depthwise = nn.Conv2d(
            width, width, 3, stride=stride, padding=1, groups=width, bias=False
        )
        self.norm_1 = ChannelNorm(width)
        # MobileNetV3's ratio; its rounding to multiples of 8 changes no width of a Llama.
        self.squeeze = nn.Conv2d(width, width // 4, 1)
        self.excite = nn.Conv2d(width // 4, width, 1)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm_2 = ChannelNorm(width)

    def forward(self, grid: Tensor) -> Tensor:
        """Return the grid (pictures, width, side, side) after the block."""
        inner = hardswish(self.norm_1(self.depthwise(grid)))
        gate = self.excite(relu(self.squeeze(inner.mean((2, 3), keepdim=True))))
        inner = self.norm_2(self.pointwise(inner * hardsigmoid(gate)))
        return cast(Tensor, grid + inner if self.is_residual else inner)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a grid (pictures, channels, height, width)."""

    def forward(self, grid: Tensor) -> Tensor:
        """Return the normalised grid."""
        return super().forward(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LdpV2Projector(nn.Module):
    """The projector of MobileVLM V2: an MLP, average pooling, and positions by a convolution."""

    SIDE = 12  # TokenDownLayer((12, 12)) in the authors' LDPNetV2Projector, whatever the tower

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.mlp = _mlp(vision_width, width)
        self.pool = nn.AdaptiveAvgPool2d(self.SIDE)
        self.positions = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, patches: Tensor) -> Tensor:
        """Return features (pictures, tokens, width)."""
        grid = self.pool(_to_grid(self.mlp(patches)))
        return _to_tokens(grid + self.positions(grid))

    @classmethod
    def side_after(cls, side: int) -> int:
        """Return the grid's side after pooling, which does not depend on the one before."""
        return cls.SIDE

    def rules(self) -> list[Rule]:
        """Return the authors' names."""
        original = "model.mm_projector."
        return [
            Rule(original + "mlp.mlp.{x}", "projector.mlp.{x}"),
            Rule(original + "peg.peg.0.{x}", "projector.positions.{x}"),
        ]


PROJECTORS: dict[str, type[LdpProjector | LdpV2Projector]] = {
    "ldpnet": LdpProjector,
    "ldpnetv2": LdpV2Projector,
}


def _mlp(vision_width: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(vision_width, width), nn.GELU(), nn.Linear(width, width))


def _to_grid(tokens: Tensor) -> Tensor:
    """Turn (pictures, side * side, width) into (pictures, width, side, side)."""
    side = round(int(tokens.shape[1]) ** 0.5)  # fixed by the tower, so a trace may keep it
    return torch.unflatten(tokens.transpose(1, 2), 2, (side, side))


def _to_tokens(grid: Tensor) -> Tensor:
    """Turn (pictures, width, side, side) into (pictures, side * side, width)."""
    return grid.flatten(2).transpose(1, 2)


# Configs and names

_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
_TEXT_RULES = [
    Rule("model.{x}", "language_model.model.{x}"),
    Rule("lm_head.{x}", "language_model.lm_head.{x}"),
]


# The families' register

_TOKENIZER = SmallTokenizer("llama", (TEMPLATE.system, "USER: ", " ASSISTANT: "))
_LICENCE = "Apache-2.0, its image encoder MIT"
FAMILY = Family(
    name="mobilevlm",
    model_type="mobilevlm",
    model=MobileVLM,
    other_folders=tower_places,
    bundled="mobilevlm",
    tokenizer=_TOKENIZER,
    originals=(
        Original("mobilevlm", "mtgv/MobileVLM-1.7B", _LICENCE, 1.67, _TOKENIZER),
        Original("mobilevlm-v2", "mtgv/MobileVLM_V2-1.7B", _LICENCE, 1.66, _TOKENIZER),
    ),
)
