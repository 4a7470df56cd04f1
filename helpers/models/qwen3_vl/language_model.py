"""Qwen3-VL's language model: Qwen3 with positions in three dimensions and DeepStack rows."""

from typing import Any, ClassVar, cast

from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLPreTrainedModel, Qwen3VLTextModel

from helpers.graphs.parts import DecoderWithCache, cache_of, cache_tensors
from helpers.models.prompt_input import WithPromptInput
from helpers.upstream.transformers import cache_argument


class Qwen3VLText(Qwen3VLTextModel):
    """transformers' text model, to which DeepStack comes as a row for every token."""

    def _deepstack_process(
        self, hidden_states: Tensor, visual_pos_masks: Tensor | None, visual_embeds: Tensor
    ) -> Tensor:
        """Add (tokens of all rows, hidden); one row of zeros stands for any number of them."""
        tokens = hidden_states.shape[0] * hidden_states.shape[1]
        return hidden_states + visual_embeds.expand(tokens, -1).reshape(hidden_states.shape)


class Qwen3VLLanguageModel(WithPromptInput, Qwen3VLPreTrainedModel, GenerationMixin):
    """The language model alone, which transformers has only together with the image encoder."""

    prompt_input = "deepstack_embeds"
    config: Any  # a `Qwen3VLTextConfig`; the parent has that of the whole model
    _tied_weights_keys: ClassVar = {  # type: ignore[misc]
        "lm_head.weight": "model.embed_tokens.weight"
    }

    def __init__(self, config: Qwen3VLTextConfig) -> None:
        super().__init__(config)
        self.model = Qwen3VLText(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of embeddings."""
        return cast(nn.Module, self.model.embed_tokens)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        deepstack_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits; `deepstack_embeds` is (batch, length, layers, hidden)."""
        deepstack = None if deepstack_embeds is None else deepstack_embeds.flatten(0, 1).unbind(1)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            deepstack_visual_embeds=deepstack,
        )
        hidden = output.last_hidden_state[:, -logits_to_keep:]
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden), past_key_values=output.past_key_values
        )


class Qwen3VLDecoder(DecoderWithCache):
    """The language model as it is traced, with DeepStack rows of picture tokens only.

    So, the input is small, and while tokens are written it is one row of zeros.
    """

    def forward(  # type: ignore[override]
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        visual_pos_masks: Tensor,
        deepstack_visual_embeds: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the decoder on the new positions."""
        is_picture = visual_pos_masks.flatten()
        places = (is_picture.long().cumsum(0) - 1).clamp(min=0)
        features = deepstack_visual_embeds.index_select(1, places)
        rows = features * is_picture.to(features.dtype)[:, None]
        language_model = cast(Qwen3VLLanguageModel, self.decoder)
        output = language_model.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            deepstack_visual_embeds=[rows[layer] for layer in range(rows.shape[0])],
            **cache_argument(language_model.model.forward, cache_of(past)),
        )
        logits = language_model.lm_head(output.last_hidden_state[:, -1:])
        return logits, *cache_tensors(output.past_key_values.layers)
