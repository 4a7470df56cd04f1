"""The page of a proof, which can be sent: what was compared, on what, and every answer."""

from helpers.measure.proof import Proof
from helpers.measure.web_page import paragraph, picture, section, table, web_page
from helpers.resources import in_words


def page_of(proof: Proof) -> str:
    """Return a proof as one page of HTML."""
    computer = proof.computer
    facts = {
        "checkpoint": proof.source["name"],
        "SHA-256 of its config.json": proof.source["config_sha256"],
        "processor": computer.processor,
        "instruction sets": ", ".join(computer.instruction_sets) or "unknown",
        "cores": computer.cores,
        "memory": in_words(computer.memory),
        "PyTorch's type": proof.dtype.removeprefix("torch."),
    } | computer.versions
    parts = [
        paragraph(proof.verdict),
        paragraph(proof.about_reference),
        table(proof.rows),
        paragraph(
            "Differences are the largest of all questions, as shares of the largest value: of the "
            "rows that a picture becomes, and of the first token's logits. All models get the same "
            "inputs; OpenVINO computes as PyTorch does (ACCURACY mode). An answer is right if it "
            "holds the right words."
        ),
        section("What it was computed with"),
        table([{"what": name, "is": value} for name, value in facts.items()]),
        section("Questions and answers"),
    ]
    for place, (image, question) in enumerate(proof.questions):
        answers = [{"model": name, "answer": texts[place]} for name, texts in proof.texts.items()]
        parts += [
            section(f"{place + 1}. {question.text}"),
            picture(image, f"a drawn picture, of which the right answer is: {question.answer}"),
            table([{"model": "right", "answer": question.answer}, *answers]),
        ]
    return web_page(f"Proof of {proof.source['name']}", *parts)
