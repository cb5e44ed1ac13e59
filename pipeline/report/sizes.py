"""The study of net sizes: teachers against students, and what size is worth by number of labels."""

from dataclasses import dataclass
from html import escape

from pipeline.report.comparison import compare, points
from pipeline.report.methods import Marker, finetuned, fraction_title
from pipeline.report.results import Result, Study
from pipeline.report.svg import Scale, line, marker, svg, text, ticks, y_grid
from pipeline.report.tables import linked, percent, spread

SHAPES: tuple[Marker, ...] = ("circle", "square", "diamond", "up", "down")
COLOURS = ("layer1", "supervised", "knn", "small", "same")


@dataclass(frozen=True)
class Lesson:
    """A student and its teacher, both at one label fraction."""

    teacher_name: str
    student_name: str
    teacher: Result
    student: Result

    @property
    def words(self) -> str:
        return f"{self.student_name} taught by {self.teacher_name}"


def lessons_at(study: Study, fraction: str) -> list[Lesson]:
    """The two students of the chain, then those of the grid of sizes."""
    results = study.results
    taught_by = finetuned(study.params.distill.teacher_layer).name
    found = []
    for student, teacher in (("distill_same", taught_by), ("distill_small", "distill_same")):
        pair = results.get((student, fraction)), results.get((teacher, fraction))
        if pair[0] and pair[1]:
            name = study.own_size if student == "distill_same" else study.small_size
            found.append(Lesson(study.own_size, name, pair[1], pair[0]))
    for teacher_name, student_name, student in study.students(fraction):
        teacher = study.sized(teacher_name, taught_by, fraction)
        if teacher is not None:
            found.append(Lesson(teacher_name, student_name, teacher, student))
    return found


def sizes_section(study: Study) -> str:
    planes, tables = [], []
    for fraction in study.fractions:
        lessons = lessons_at(study, fraction)
        if lessons:
            planes.append(f"<figure>{plane(lessons, fraction)}</figure>")
            tables.append(_lessons_table(lessons, fraction))
    if not planes:
        return ""
    return (
        "<p>Each point is a student: across, the accuracy of its teacher; up, its own. On the line "
        "it is as good as its teacher, above it better. Shape and colour are the student's size; "
        f'an open ring saw true labels too.</p><div class="cards">{"".join(planes)}</div>'
        f"<details><summary>Every student and its teacher</summary>{''.join(tables)}</details>"
        f"{_by_size(study)}"
    )


def plane(lessons: list[Lesson], fraction: str, size: float = 340) -> str:
    """Students against teachers, in percent of test accuracy, on one scale for both."""
    values = [r.mean for lesson in lessons for r in (lesson.teacher, lesson.student)]
    pad = max(0.08 * (max(values) - min(values)), 0.008)
    low, high = min(values) - pad, max(values) + pad
    x, y = Scale(low, high, 58, size - 14), Scale(low, high, size - 74, 34)

    def show(v: float) -> str:
        return f"{v:.0%}" if high - low > 0.04 else f"{v:.1%}"

    body = [text(0, 16, f"{fraction_title(fraction)}: students, teachers", "bold")]
    body.append(y_grid(y, x.start, x.end, show, 4))
    body += [text(x(t), y.start + 18, show(t), "axis", "middle") for t in ticks(low, high, 4)]
    body.append(line(x(low), y(low), x(high), y(high), "guess"))
    middle = (x.start + x.end) / 2
    body.append(text(middle, y.start + 38, "teacher, test accuracy", "axis", "middle"))
    names = list(dict.fromkeys(lesson.student_name for lesson in lessons))
    for lesson in lessons:
        place = names.index(lesson.student_name)
        shape, colour = SHAPES[place % len(SHAPES)], COLOURS[place % len(COLOURS)]
        px, py = x(lesson.teacher.mean), y(lesson.student.mean)
        words = f"{lesson.words}: {percent(lesson.student.mean)} %, teacher "
        words += f"{percent(lesson.teacher.mean)} %"
        if lesson.student.method.name.endswith("_labels"):
            body.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="9" class="ring"/>')
        body.append(marker(px, py, shape, colour, 5, words))
    for place, name in enumerate(names):
        shape, colour = SHAPES[place % len(SHAPES)], COLOURS[place % len(COLOURS)]
        left, below = 8 + place % 2 * size / 2, size + 20 * (place // 2)
        body.append(marker(left, below - 10, shape, colour, 4.5, name))
        body.append(text(left + 10, below - 5, name))
    height = size + 20 * ((len(names) - 1) // 2)
    alt = f"Students against teachers with {fraction_title(fraction)}. " + "; ".join(
        f"{lesson.words}: {percent(lesson.student.mean)}% against {percent(lesson.teacher.mean)}%"
        for lesson in lessons
    )
    return svg("".join(body), size, height, alt)


def _lessons_table(lessons: list[Lesson], fraction: str) -> str:
    rows = []
    for lesson in lessons:
        gap = compare(lesson.student, lesson.teacher)
        cells = (
            lesson.teacher_name,
            _number(lesson.teacher),
            _number(lesson.student),
            points(gap.mean) if gap else "\N{EN DASH}",
            gap.kind if gap else "",
        )
        title = f"{lesson.student_name}, {lesson.student.method.title.lower()}"
        rows.append(
            f'<tr><th scope="row">{escape(title)}</th>'
            f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    titles = ("Student", "Teacher", "Teacher %", "Student %", "Points", "")
    heads = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        f'<h3>{fraction_title(fraction)}</h3><div class="scroll"><table><thead><tr>{heads}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _by_size(study: Study) -> str:
    """Supervised and fine-tuned, by size and label fraction; nothing for one size."""
    if len(study.sizes) < 2:
        return ""
    sizes = sorted(study.sizes, key=study.parameters_of)
    layer = finetuned(study.params.distill.teacher_layer)
    rows = []
    for size in sizes:
        for method, title in (("supervised", "supervised"), (layer.name, layer.title.lower())):
            cells = [study.sized(size, method, fraction) for fraction in study.fractions]
            shown = "".join(f"<td>{_number(r)}</td>" for r in cells)
            count = f"{study.parameters_of(size):,} parameters"
            rows.append(
                f'<tr><th scope="row">{escape(size)} <small>{count}</small>, {escape(title)}</th>'
                f"{shown}</tr>"
            )
    heads = "".join(f'<th scope="col">{fraction_title(f)}</th>' for f in study.fractions)
    return (
        "<h3>By size of the net</h3><p>Test accuracy in percent. The claim is that the step from "
        "the smallest to the largest, fine-tuned, is larger the fewer the labels.</p>"
        f'<div class="scroll"><table><thead><tr><th scope="col">Net</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number(result: Result | None) -> str:
    if result is None:
        return "\N{EN DASH}"
    return linked(result, percent(result.mean, spread(result)))
