"""An input of a language model that transformers' `generate` hands over with the prompt alone."""

from typing import Any, ClassVar

from torch import Tensor
from transformers import GenerationMixin


class WithPromptInput(GenerationMixin):
    """Comes before transformers' class; tokens that are written later have no `prompt_input`."""

    prompt_input: ClassVar[str]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *,
        inputs_embeds: Tensor | None = None,  # `generate` looks for the name
        is_first_iteration: bool = False,
        **kwargs: Any,  # under this name `generate` knows that `forward` takes the rest
    ) -> dict[str, Any]:
        """Return the inputs of one call of `forward`."""
        of_prompt = {self.prompt_input: kwargs.pop(self.prompt_input, None)}
        parent: Any = super()  # transformers annotates the method for a class of its type checks
        inputs: dict[str, Any] = parent.prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return inputs | (of_prompt if is_first_iteration else {})
