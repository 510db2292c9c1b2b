"""The page and the picture that a run leaves behind."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import host
from samples import Samples, spread
from targets import verdicts

BEGIN = "<!-- What follows is written by scripts/bench.sh. -->"
END = "<!-- What scripts/bench.sh writes ends here. -->\n"

MIB = 1 << 20


@dataclass(frozen=True)
class Facts:
    """What is to be known about a run besides its figures."""

    labels: dict[str, str]
    versions: dict[str, str]
    rounds: int
    seconds: float
    took_s: float
    notes: list[str]


@dataclass(frozen=True)
class Column:
    """A figure of a scenario in a table."""

    title: str
    scenario: str
    figure: str
    digits: int
    scale: float = 1.0


def keep_alive_columns(figure: str, digits: int, with_rate: bool = True) -> list[Column]:
    columns = [
        Column("1 connection", "c1", figure, digits),
        Column("64", "c64", figure, digits),
        Column("256", "c256", figure, digits),
    ]
    if with_rate:
        columns.append(Column("fixed rate", "rate", figure, digits))
    return [*columns, Column("new connection each", "new", figure, digits)]


def body_columns(figure: str, digits: int, scale: float) -> list[Column]:
    return [
        Column("1 MB down", "down-1m", figure, digits, scale),
        Column("1 MB up", "up-1m", figure, digits, scale),
        Column("100 MB down", "down-100m", figure, digits, scale),
        Column("100 MB up", "up-100m", figure, digits, scale),
    ]


TABLES = [
    ("CPU per request, µs (100 octets in the response)", keep_alive_columns("cpu_us", 1)),
    ("Requests per second", keep_alive_columns("per_second", 0, with_rate=False)),
    ("Latency, median, ms", keep_alive_columns("p50_ms", 2)),
    ("Latency, 99 %, ms", keep_alive_columns("p99_ms", 2)),
    ("Large bodies, GB per CPU second", body_columns("gb_per_cpu_s", 2, 1.0)),
    ("Large bodies, memory that they add, MiB", body_columns("growth_bytes", 1, 1 / MIB)),
    (
        "Event streams: 1,000, with 10 events of 100 octets a second each",
        [
            Column("CPU per event, µs", "streams", "cpu_us", 2),
            Column("latency, median, ms", "streams", "p50_ms", 2),
            Column("latency, 99 %, ms", "streams", "p99_ms", 2),
            Column("memory each, kB", "streams", "bytes_per_stream", 1, 1e-3),
        ],
    ),
    (
        "Memory",
        [
            Column("at rest, MB", "base", "pss_bytes", 1, 1e-6),
            Column("per idle stream, kB", "streams-idle", "bytes_per_stream", 1, 1e-3),
            Column("streams asked for", "streams-group", "streams", 0),
            Column("held in 128 MiB, %", "streams-group", "share_held", 0, 100.0),
            Column("charged at most, MiB", "streams-group", "group_bytes", 0, 1 / MIB),
        ],
    ),
]

# Figures that are about nothing, or the same for all.
WITHOUT_RATIO = ("growth_bytes", "streams", "share_held")

# Scenarios with entries of their own, and what these are called.
OURS_ONLY = {
    "affinity": ("64 connections", {"unnamed": "no instance named", "named": "instance named"}),
    "backends": (
        "64 connections",
        {
            "3": "3 backends",
            "10,000": "10,000 backends",
            "HAProxy, 3": "HAProxy, 3 backends",
            "HAProxy, 10,000": "HAProxy, 10,000 backends",
        },
    ),
    "workers": ("256 connections", {"1": "1 worker", "2": "2 workers"}),
}


def markdown(samples: Samples, facts: Facts) -> str:
    """Everything, without a heading of the first level."""
    parts = [
        about(facts),
        picture(samples),
        *(table(title, c, samples, facts) for title, c in TABLES),
    ]
    parts += [ours_only(samples), targets(samples)]
    return "\n".join(part for part in parts if part)


def picture(samples: Samples) -> str:
    """The link to it, if there is one."""
    is_there = any(panel.scenario in samples.values for panel in PANELS)
    return "![Cost of a request, an event and a stream](performance.svg)\n" if is_there else ""


def about(facts: Facts) -> str:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    cpus = host.Cpus.shared_out()
    machine = "a virtual machine" if host.is_virtual() else "no virtual machine"
    count = len(set(cpus.proxy) | set(cpus.load))
    lines = [
        f"Measured on {today}: {host.cpu_model()}, {count} CPUs, {host.memory_gib():.0f} GiB, "
        f"{machine}, Linux {host.kernel()}, TCP {host.congestion_control()}.",
        ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".",
        f"{facts.rounds} rounds of {facts.seconds:g} s for each figure, "
        f"{facts.took_s / 60.0:.0f} minutes in all.",
        "Each cell is the median, then the lowest and the highest of the rounds, then how many "
        "times the peer's figure ours is (the median over the rounds).",
        *facts.notes,
    ]
    return "\n".join(lines) + "\n"


def table(title: str, columns: Sequence[Column], samples: Samples, facts: Facts) -> str:
    """One row for each proxy; nothing if nothing of it was measured."""
    columns = [c for c in columns if c.scenario in samples.values]
    rows = []
    for proxy, label in facts.labels.items():
        cells = [cell(samples, proxy, column) for column in columns]
        if any(cells):
            rows.append(f"| {label} | " + " | ".join(cells) + " |")
    if not columns or not rows:
        return ""
    heads = "| | " + " | ".join(column.title for column in columns) + " |"
    return "\n".join([f"### {title}\n", heads, "| --- |" + " --- |" * len(columns), *rows]) + "\n"


def cell(samples: Samples, proxy: str, column: Column) -> str:
    values = [v * column.scale for v in samples.of(column.scenario, proxy, column.figure)]
    text = spread(values, column.digits)
    ratios = samples.ratios(column.scenario, "ours", proxy, column.figure)
    is_bare = proxy == "ours" or column.figure in WITHOUT_RATIO
    if not text or not ratios or is_bare:
        return text
    return f"{text} · {statistics.median(ratios):.2f}"


def ours_only(samples: Samples) -> str:
    rows = []
    for scenario, (load, ways) in OURS_ONLY.items():
        for way, label in ways.items():
            if spent := samples.of(scenario, way, "cpu_us"):
                rates = spread(samples.of(scenario, way, "per_second"), 0)
                rows.append(f"| {label} | {load} | {spread(spent, 2)} | {rates} |")
    if not rows:
        return ""
    heads = "| | load | CPU per request, µs | requests per second |"
    return "\n".join(["### Ways to use it\n", heads, "| --- | --- | --- | --- |", *rows]) + "\n"


def targets(samples: Samples) -> str:
    rows = [f"| {v.what} | {v.target} | {v.value} | {v.outcome.value} |" for v in verdicts(samples)]
    heads = ["### Targets\n", "| what | target | this run | |", "| --- | --- | --- | --- |"]
    return "\n".join([*heads, *rows]) + "\n"


def between_markers(page: str, text: str) -> str:
    """The page with what a run has written replaced."""
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END.strip(), 1)[1]
    return f"{before}{BEGIN}\n\n{text}\n{END.strip()}{after}"


# ---- The picture --------------------------------------------------------------------------------

PANELS = [
    Column("CPU per request, 64 connections, µs", "c64", "cpu_us", 1),
    Column("CPU per request, 256 connections, µs", "c256", "cpu_us", 1),
    Column("CPU per request, new connections, µs", "new", "cpu_us", 1),
    Column("CPU per event, 1,000 streams, µs", "streams", "cpu_us", 1),
    Column("Latency of an event, 99 %, ms", "streams", "p99_ms", 1),
    Column("Memory per idle stream, kB", "streams-idle", "bytes_per_stream", 1, 1e-3),
]
PANEL_WIDTH, LABEL_WIDTH, BAR_WIDTH, ROW, TOP, GAP = 460, 150, 230, 22, 34, 18
OURS_COLOUR, PEER_COLOUR = "#2563a8", "#9aa5b1"


def svg(samples: Samples, facts: Facts) -> str:
    """Bars from zero, shorter is better; each panel has a scale of its own. Text that says all of
    it goes along: a picture must not be the only place of a figure."""
    panels = [panel for panel in PANELS if panel.scenario in samples.values]
    if not panels:
        return ""
    height = TOP + ROW * len(facts.labels) + GAP
    rows = (len(panels) + 1) // 2
    total = f"{2 * PANEL_WIDTH} {rows * height}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total}" '
        'font-family="sans-serif" font-size="13">',
        "<title>Cost of a request, an event and a stream; shorter bars are better</title>",
        f'<rect width="{2 * PANEL_WIDTH}" height="{rows * height}" fill="#ffffff"/>',
    ]
    for index, panel in enumerate(panels):
        left, top = index % 2 * PANEL_WIDTH, index // 2 * height
        parts.append(f'<g transform="translate({left},{top})">')
        parts += draw(panel, samples, facts)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw(panel: Column, samples: Samples, facts: Facts) -> list[str]:
    values: dict[str, float] = {}
    for proxy in facts.labels:
        median = samples.median(panel.scenario, proxy, panel.figure)
        if median is not None:
            values[proxy] = median * panel.scale
    longest = max(values.values(), default=0.0) or 1.0
    lines = [f'<text x="10" y="22" font-weight="bold">{escape(panel.title)}</text>']
    for row, (proxy, value) in enumerate(values.items()):
        y = TOP + ROW * row
        width = BAR_WIDTH * value / longest
        colour = OURS_COLOUR if proxy.startswith("ours") else PEER_COLOUR
        label = escape(facts.labels[proxy])
        lines += [
            f'<text x="{LABEL_WIDTH}" y="{y + 13}" text-anchor="end">{label}</text>',
            f'<rect x="{LABEL_WIDTH + 8}" y="{y}" width="{width:.1f}" height="16" '
            f'fill="{colour}"/>',
            f'<text x="{LABEL_WIDTH + 14 + width:.1f}" y="{y + 13}">'
            f"{value:,.{panel.digits}f}</text>",
        ]
    return lines
