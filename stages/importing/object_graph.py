"""The graph of objects that TF2 keeps in a checkpoint: which variable lies under which key."""

from stages.importing.wire import as_bytes, as_text, fields


def full_names(graph: memoryview) -> dict[str, str]:
    """Variable names by checkpoint key, from the object graph that TF2 keeps in a checkpoint.

    Raises:
        Damaged: the bytes are no such graph.
    """
    names: dict[str, str] = {}
    for number, node in fields(graph):
        if number != 1:
            continue
        for part, attribute in fields(as_bytes(node)):
            if part != 2:
                continue
            texts = {
                field: as_text(text)
                for field, text in fields(as_bytes(attribute))
                if field in {2, 3}
            }
            if 2 in texts and 3 in texts:
                names[texts[3]] = texts[2]
    return names
