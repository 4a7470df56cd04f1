"""What OpenVINO GenAI and Model Server read beside the parts: a folder serves them as it serves us.

These are the tokenizer as two OpenVINO models, a chat template, the tokens that end an answer, how
pictures are prepared, and a graph that Model Server runs.

What this module does not know: whether a runtime knows the family, which its processor says.
"""

import re
from pathlib import Path
from typing import Any

import openvino as ov

from helpers.convert.places import DETOKENIZER, GRAPH, TOKENIZER
from helpers.inputs.chat_templates import jinja_of
from helpers.models.processors import Processor
from helpers.sources.checkpoints import read_json, write_json

CHAT_TEMPLATE = "chat_template.jinja"
GENERATION, PICTURES = "generation_config.json", "preprocessor_config.json"
# The graph with which Model Server answers chats (its documentation, "Text generation"): requests
# go in a loop until their answers are complete.
GRAPH_TEXT = """\
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node {
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_stream: "LOOPBACK:loopback"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  output_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  input_stream_info { tag_index: "LOOPBACK:0" back_edge: true }
  node_options {
    [type.googleapis.com/mediapipe.LLMCalculatorOptions] {
      pipeline_type: VLM_CB
      models_path: "./"
      device: "CPU"
    }
  }
  input_stream_handler {
    input_stream_handler: "SyncSetInputStreamHandler"
    options {
      [mediapipe.SyncSetInputStreamHandlerOptions.ext] { sync_set { tag_index: "LOOPBACK:0" } }
    }
  }
}
"""


def write_runtime_files(processor: Processor, folder: Path) -> None:
    """Write the files beside the parts, if there is a runtime that knows the family.

    What a checkpoint brings itself is completed, not replaced.
    """
    if not processor.runtime.loads:
        return
    from openvino_tokenizers import convert_tokenizer  # type: ignore[import-untyped]

    tokenizers = convert_tokenizer(processor.tokenizer, with_detokenizer=True)
    for model, name in zip(tokenizers, (TOKENIZER, DETOKENIZER), strict=True):
        _name_anew(model, Path(name).stem)
        ov.save_model(model, folder / name)
    template = folder / CHAT_TEMPLATE
    if not template.exists():
        text = jinja_of(processor.template, processor.runtime.image_text)
        template.write_text(text, encoding="utf-8", newline="\n")
    _complete(folder / GENERATION, {"eos_token_id": processor.stop_token_ids})
    _complete(folder / PICTURES, processor.runtime.pictures)
    (folder / GRAPH).write_text(GRAPH_TEXT, encoding="utf-8", newline="\n")


def _name_anew(model: ov.Model, name: str) -> None:
    """Name operations by their order: OpenVINO counts all that were ever made in the process."""
    model.set_friendly_name(name)
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
        for port in node.outputs():
            names = {name for name in port.get_names() if not re.fullmatch(r"[A-Za-z]+_\d+", name)}
            port.get_tensor().set_names(names)


def _complete(path: Path, settings: dict[str, Any]) -> None:
    before = read_json(path) if path.exists() else {}
    write_json(path, before | settings)
