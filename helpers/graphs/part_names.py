"""The names of a model's parts, and of their files."""

IMAGE_ENCODER = "image encoder"
TEXT_EMBEDDINGS = "text embeddings"
LANGUAGE_MODEL = "language model"
# The names that optimum-intel and OpenVINO GenAI share, so that they can read the folder too.
FILES = {
    IMAGE_ENCODER: "openvino_vision_embeddings_model.xml",
    TEXT_EMBEDDINGS: "openvino_text_embeddings_model.xml",
    LANGUAGE_MODEL: "openvino_language_model.xml",
}
