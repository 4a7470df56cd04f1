"""Which names a notebook's cell sets, and which it reads from other cells."""

import ast


class CellNames(ast.NodeVisitor):
    """The names that code sets (`stores`) and those that it reads from elsewhere (`reads`).

    A name that is made of its own earlier value, as in `number += 1`, or deleted is among both.
    """

    def __init__(self, source: str = "") -> None:
        self.stores: set[str] = set()
        self.loads: set[str] = set()
        self.earlier_values: set[str] = set()
        self.visit(ast.parse(source))

    @property
    def reads(self) -> set[str]:
        """The names that are read and nowhere set, or not before."""
        return (self.loads - self.stores) | self.earlier_values

    def visit_Name(self, node: ast.Name) -> None:
        (self.loads if isinstance(node.ctx, ast.Load) else self.stores).add(node.id)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._visit_assignment(node, [node.target])

    def visit_Assign(self, node: ast.Assign) -> None:
        self._visit_assignment(node, node.targets)

    def _visit_assignment(self, node: ast.Assign | ast.AugAssign, targets: list[ast.expr]) -> None:
        values = CellNames()
        values.visit(node.value)
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        of_itself = names if isinstance(node, ast.AugAssign) else names & values.reads
        self.earlier_values |= of_itself - self.stores
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        self.earlier_values |= names - self.stores
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.stores |= {node.name} if node.name else set()
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        self.stores.add(node.arg)

    def visit_alias(self, node: ast.alias) -> None:
        self.stores.add((node.asname or node.name).partition(".")[0])

    def _visit_scope(self, node: ast.AST) -> None:
        inner = CellNames()
        for child in ast.iter_child_nodes(node):
            inner.visit(child)
        self.loads |= inner.reads
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.stores.add(node.name)

    visit_FunctionDef = visit_ClassDef = visit_Lambda = _visit_scope
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_scope
