"""The names of a model's parts, and of their files."""

IMAGE_ENCODER = "image encoder"
TEXT_EMBEDDINGS = "text embeddings"
LANGUAGE_MODEL = "language model"
# The language model compiled a second time, for one token after another; its file is the same.
NEXT_TOKENS = "next tokens apart"
# The language model beside it, where prompts alone are fastest with other properties.
PROMPTS = "prompts apart"
# What every layer of the language model gets of a token, looked up by its id.
PER_LAYER_EMBEDDINGS = "per-layer embeddings"
# What stands before the layers of an image encoder that takes pictures of any size.
PATCH_EMBEDDINGS = "patch embeddings"
POSITION_EMBEDDINGS = "position embeddings"
# An image encoder that merges its tokens in its middle: what stands before, and what merges them.
EARLY_LAYERS = "early image layers"
WINDOW_MERGER = "window merger"
# The names that optimum-intel and OpenVINO GenAI share, so that they can read the folder too.
FILES = {
    IMAGE_ENCODER: "openvino_vision_embeddings_model.xml",
    TEXT_EMBEDDINGS: "openvino_text_embeddings_model.xml",
    LANGUAGE_MODEL: "openvino_language_model.xml",
}
# The same for an image encoder in three parts, which they call so.
FILES_OF_THREE_PART_ENCODER = {
    PATCH_EMBEDDINGS: "openvino_vision_embeddings_model.xml",
    POSITION_EMBEDDINGS: "openvino_vision_embeddings_pos_model.xml",
    **FILES,
    IMAGE_ENCODER: "openvino_vision_embeddings_merger_model.xml",
}
# Files of such an encoder; nobody else knows it yet.
FILES_OF_MERGING_ENCODER = {
    EARLY_LAYERS: "openvino_vision_embeddings_model.xml",
    WINDOW_MERGER: "openvino_vision_window_merger_model.xml",
    **FILES,
    IMAGE_ENCODER: "openvino_vision_embeddings_merger_model.xml",
}
# The same for a language model that takes per-layer embeddings.
FILES_WITH_PER_LAYER_EMBEDDINGS = {
    IMAGE_ENCODER: FILES[IMAGE_ENCODER],
    TEXT_EMBEDDINGS: FILES[TEXT_EMBEDDINGS],
    PER_LAYER_EMBEDDINGS: "openvino_text_embeddings_per_layer_model.xml",
    LANGUAGE_MODEL: FILES[LANGUAGE_MODEL],
}
