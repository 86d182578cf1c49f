#!/usr/bin/env python3
"""Draws queries per second over recall as one SVG, from rows of bench_vamana and of ann_peers.py.

usage: plot_ann.py OUT.svg [SET=]FILE ...

    venv/bin/python tests/bench/ann_peers.py --kind topics,line >build/peers.tsv
    ./build.sh bench vamana --hard --kind topics,line --how build --beams 10,16,24,32,64,128,256 >build/hard.tsv
    ./build.sh bench vamana --only ours/type= >build/sift10k.tsv
    python3 tests/bench/plot_ann.py build/ann.svg build/peers.tsv build/hard.tsv sift10k=build/sift10k.tsv

One panel for each set, in the order in which the sets come; up and to the right is better. Rows of peers and of hard
kinds name their set. Those of bench_vamana on files do not: SET says it, and without it they are left out. Of two equal
rows the last counts. bench_vamana's own hnswlib is drawn where ann_peers.py measured none. A width that finds no more
than a narrower one is left out, and a line that stays below a recall of 0.8 is only named. Needs only Python; the
colours are for a light and a dark background.
"""
import html
import math
import re
import sys

# The cases that are drawn, and the label of the curve that each is a point of. The first that matches counts.
CASES = [
    (r"peer/(?P<name>[^/]+)/(?P<set>[^/]+)/ef=(?P<width>\d+)", "{name}"),
    (r"hard/(?P<set>[^/]+)/how=build/beam=(?P<width>\d+)", "ours"),
    (r"hard/(?P<set>[^/]+)/how=(?P<how>[^/]+)/beam=(?P<width>\d+)", "ours, {how}"),
    (r"ours/type=(?P<type>[^/]+)/beam=(?P<width>\d+)", "ours, {type}"),
    (r"hnswlib/hard/(?P<set>[^/]+)/how=insert/ef=(?P<width>\d+)", "hnswlib, C++"),
    (r"hnswlib/ef=(?P<width>\d+)", "hnswlib, C++"),
]
METRICS = ("recall_at_10", "qps")
RECALLS = (0.8, 0.85, 0.9, 0.95, 1)

PANEL_W, PANEL_H = 450, 280  # with margins
LEFT, RIGHT, TOP, BOTTOM = 58, 124, 30, 40
COLUMNS = 2
LABEL_H = 13
GREY = "#7a828c"
OURS = ("#e5534b", "#f0883e", "#d0679d", "#b58900")
OTHERS = ("#3b8eea", "#2f9e56", "#9a6dd7", "#1f9aa5", "#8d7b5a")


def read(argument, sets):
    """Adds the file's points: sets[set][label][width] = {metric: value}."""
    named, path = argument.split("=", 1) if "=" in argument else (None, argument)
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            fields = line.rstrip("\n").split("\t")
            if len(fields) != 5 or fields[2] not in METRICS:
                continue
            for pattern, label in CASES:
                match = re.fullmatch(pattern, fields[1])
                if match is None:
                    continue
                parts = match.groupdict()
                of = parts.get("set") or named
                if of is not None:
                    points = sets.setdefault(of, {}).setdefault(label.format(**parts), {})
                    points.setdefault(int(parts["width"]), {})[fields[2]] = float(fields[3])
                break


def curve(points):
    """(recall, qps) by width, without widths that find no more than a narrower one, from a recall of RECALLS[0] on:
    where a line comes from below, it is cut there."""
    line, cut = [], []
    for width in sorted(points):
        if len(points[width]) == len(METRICS) and (not line or points[width]["recall_at_10"] > line[-1][0]):
            line.append((points[width]["recall_at_10"], points[width]["qps"]))
    for (below, fast), (recall, qps) in zip([(1, 0)] + line, line):
        if below < RECALLS[0] <= recall:
            share = (RECALLS[0] - below) / (recall - below)
            cut.append((RECALLS[0], fast * (qps / fast) ** share))
        if recall >= RECALLS[0]:
            cut.append((recall, qps))
    return cut


def text(x, y, what, anchor="start", fill=GREY, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"{more}>{html.escape(what)}</text>'


def stroke(points, colour, width, more=""):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{more}/>'


def ticks(low, high):
    """1, 2 and 5 times the powers of ten."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10 ** d for d in decades for m in (1, 2, 5) if low <= m * 10 ** d <= high]


def panel(title, curves, colours, left, top):
    drawn = {label: points for label, points in curves.items() if points}
    rates = [qps for points in drawn.values() for _, qps in points] or [1000, 10000]
    low, high = min(rates) / 1.15, max(rates) * 1.15
    x0, x1, y0, y1 = left + LEFT, left + PANEL_W - RIGHT, top + PANEL_H - BOTTOM, top + TOP

    def place(recall, qps):
        return (x0 + (recall - RECALLS[0]) / (RECALLS[-1] - RECALLS[0]) * (x1 - x0),
                y0 - math.log(qps / low) / math.log(high / low) * (y0 - y1))

    out = [text(x0, top + 18, title, more=' font-weight="bold" font-size="13"')]
    for recall in RECALLS:
        x = place(recall, low)[0]
        out += [stroke([(x, y0), (x, y1)], GREY, 0.5, ' opacity="0.4"'), text(x, y0 + 14, f"{recall:g}", "middle")]
    for qps in ticks(low, high):
        y = place(1, qps)[1]
        out += [stroke([(x0, y), (x1, y)], GREY, 0.5, ' opacity="0.4"'), text(x0 - 5, y + 4, f"{qps:,.0f}", "end")]
    out.append(text((x0 + x1) / 2, y0 + 29, "recall@10", "middle"))

    labels = [(y0, x1, label, label + " < 0.8") for label in curves if label not in drawn]
    for label, points in drawn.items():
        places = [place(*point) for point in points]
        out.append(stroke(places, colours[label], 2.6 if label.startswith("ours") else 1.6))
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{colours[label]}"/>' for x, y in places]
        labels.append((places[-1][1], places[-1][0], label, label))
    # Labels stand in the right margin, as high as their lines end; from the lowest up, each makes room for the others.
    floor = y0 + LABEL_H
    for y, x, label, words in sorted(labels, reverse=True):
        floor = min(y, floor - LABEL_H)
        if label in drawn:
            out.append(stroke([(x, y), (x1 + 12, floor)], colours[label], 0.8, ' stroke-dasharray="2 3"'))
        out.append(text(x1 + 15, floor + 4, words, fill=colours[label]))
    return out


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sets = {}
    for argument in sys.argv[2:]:
        read(argument, sets)
    if not sets:
        sys.exit("plot_ann: no rows with recall_at_10 and qps of a known set")
    for curves in sets.values():
        if "hnswlib" in curves:
            curves.pop("hnswlib, C++", None)
    names = sorted({label for curves in sets.values() for label in curves})
    ours = [name for name in names if name.startswith("ours")]
    others = [name for name in names if name not in ours]
    colours = {name: OURS[i % len(OURS)] for i, name in enumerate(ours)}
    colours.update({name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)})

    columns = min(COLUMNS, len(sets))
    width, height = columns * PANEL_W, math.ceil(len(sets) / columns) * PANEL_H
    title = "Queries per second of one thread (log scale) by recall@10"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 24}" width="{width}" '
           f'height="{height + 24}" font-family="system-ui, sans-serif" font-size="11" role="img">',
           f"<title>{title}</title>", text(10, 17, title, more=' font-size="13"')]
    for i, (name, curves) in enumerate(sets.items()):
        shown = {label: curve(points) for label, points in curves.items()}
        out += panel(name, shown, colours, i % columns * PANEL_W, 24 + i // columns * PANEL_H)
    with open(sys.argv[1], "w", encoding="utf-8") as svg:
        svg.write("\n".join(out + ["</svg>"]) + "\n")


if __name__ == "__main__":
    main()
