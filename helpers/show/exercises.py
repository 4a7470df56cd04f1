"""Check cells for the exercises: they tell a right answer from a wrong one and from none."""


def check(given: object, right: object, hint: str) -> None:
    """Print whether `given` is `right`; None counts as not answered yet."""
    if given is None:
        print("Not answered yet: replace None above and run both cells again.")
    elif given == right:
        print("Right.")
    else:
        print(f"Not right yet. {hint}")
