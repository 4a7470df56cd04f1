"""Check cells for the exercises: they tell a right answer from a wrong one and from none."""


def check(answer: object, right: object, hint: str) -> None:
    """Print whether `answer` is `right`; None counts as not answered yet."""
    if answer is None:
        print("Not answered yet: replace None above and run both cells again.")
    elif answer == right:
        print("Right.")
    else:
        print(f"Not right yet. {hint}")
