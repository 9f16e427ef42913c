"""The page of a folder of predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from conr_ray.edits.log import called
from conr_ray.reporting import chart_style as style
from conr_ray.reporting.blocks import (
    MOST_ROWS,
    Block,
    Cell,
    Chart,
    Code,
    Fact,
    Facts,
    Note,
    Page,
    PictureGroup,
    PictureRow,
    Pictures,
    Section,
    Table,
    View,
)
from conr_ray.reporting.names import counted
from conr_ray.reporting.predicted_pictures import PredictedPictures
from conr_ray.reporting.predictions_data import Cluster, Moves, Predicted, PredictionsData

# Clusters with examples, and moved images that are pictured.
_MOST_CLUSTERS, _MOST_MOVED = 50, 20


def predictions_page(data: PredictionsData) -> Page:
    """The page of the predictions in a folder."""
    told = data.told
    pictures = PredictedPictures(told)
    run = str(told["run"]).rstrip("/").rpartition("/")[2]
    subtitle = f"Clusters of {data.title} by the run {run} after {told['epochs']} epochs"
    sections = [Section("clusters", "Clusters", _clusters(data, pictures))]
    if data.moves is not None:
        sections.append(_moved(data.moves, pictures))
    if data.num_errors:
        sections.append(Section("unreadable", "Images that could not be read", [_errors(data)]))
    text = json.dumps(told, indent=2, ensure_ascii=False)
    sections.append(Section("prediction", "Prediction", [Code("prediction.json", text)]))
    return Page(f"{data.title}: clusters", subtitle, Facts(_headline(data)), sections)


def _headline(data: PredictionsData) -> list[Fact]:
    done = "" if data.told["complete"] else "so far: the prediction is not complete"
    facts = [Fact("images", f"{data.num_images:,}", done)]
    facts.append(Fact("clusters with images", f"{len(data.clusters):,}", _of(data)))
    if data.judged:
        share = data.num_confident / data.judged
        facts.append(Fact("confident", f"{share:.1%}", f"{data.num_confident:,} images"))
    facts.append(Fact("unreadable", f"{data.num_errors:,}"))
    if data.moves is not None:
        moved = sum(data.moves.counts.values())
        facts.append(Fact("moved", f"{moved:,}", f"of {data.moves.known:,} that were there before"))
    return facts


def _of(data: PredictionsData) -> str:
    number = data.told.get("num_clusters")
    return f"of {number:,}" if isinstance(number, int) else ""


def _clusters(data: PredictionsData, pictures: PredictedPictures) -> list[Block]:
    blocks: list[Block] = [Note(problem) for problem in data.problems]
    if not data.clusters:
        return [*blocks, Note("no image has a cluster yet")]
    ranked = sorted(data.clusters.items(), key=lambda item: -item[1].size)
    shown = sorted(ranked[:_MOST_CLUSTERS])
    wanted = [image for _, cluster in shown for image in (*cluster.surest, *cluster.unsure)]
    files = pictures.read(wanted)
    if files:
        blocks.append(_examples(shown, files, pictures, data.names))
    else:
        blocks.append(Note("the images cannot be reached from here: no pictures are shown"))
    return [*blocks, _sizes(data, ranked), _table(data, ranked)]


def _examples(
    shown: Sequence[tuple[int, Cluster]],
    files: dict[Predicted, bytes],
    pictures: PredictedPictures,
    cluster_names: Mapping[int, str],
) -> Pictures:
    groups = []
    for number, cluster in shown:
        rows = []
        for name, images in (("surest", cluster.surest), ("least sure", cluster.unsure)):
            row = [
                pictures.shown(image, f"{name} image {rank} of cluster {number}", files[image])
                for rank, image in enumerate(images, start=1)
                if image in files
            ]
            if row:
                rows.append(PictureRow(name, row))
        if rows:
            groups.append(PictureGroup(f"{called(number, cluster_names)} ({cluster.size:,})", rows))
    caption = (
        f"Images of {counted(len(groups), 'cluster')} (number of images in brackets): the surest, "
        "nearest to the centre, and the least sure, at the boundary to another cluster or beyond."
    )
    return Pictures("Examples of clusters", caption, groups)


def _sizes(data: PredictionsData, ranked: Sequence[tuple[int, Cluster]]) -> Chart:
    names = [str(number) for number, _ in ranked]
    parts = [("confident", [c.confident for _, c in ranked], style.BLUE)]
    parts.append(("not confident", [c.size - c.confident for _, c in ranked], style.ORANGE))
    if not data.judged:
        parts = [("images", [cluster.size for _, cluster in ranked], style.BLUE)]
    bars = [
        go.Bar(
            x=names,
            y=sizes,
            name=name,
            marker={"color": color},
            hovertemplate=f"cluster %{{x}}: %{{y:,}} {name}<extra></extra>",
        )
        for name, sizes, color in parts
    ]
    found = style.figure(
        bars, x="cluster", y="images", bargap=0.25, barmode="stack", legend=len(bars) > 1
    )
    found.update_xaxes(type="category")
    sizes = [cluster.size for _, cluster in ranked]
    clusters = counted(len(ranked), "cluster")
    caption = f"Sizes of the {clusters}, from {sizes[0]:,} to {sizes[-1]:,} images."
    return Chart("Sizes of clusters", [View("", found, caption)], height=340)


def _table(data: PredictionsData, ranked: Sequence[tuple[int, Cluster]]) -> Table:
    rows, names = [], data.names
    for number, cluster in ranked[:MOST_ROWS]:
        share = cluster.confident / cluster.size if data.judged else None
        rows.append(
            [
                Cell.of(number, f"{number}: {names[number]}" if number in names else None),
                Cell.of(cluster.size, f"{cluster.size:,}"),
                Cell.of(cluster.size / data.num_images, f"{cluster.size / data.num_images:.1%}"),
                Cell.of(share, "-" if share is None else f"{share:.1%}"),
                Cell.of(cluster.surest[0].name),
                Cell.of(cluster.unsure[0].name if cluster.unsure else None),
            ]
        )
    more = len(ranked) - len(rows)
    caption = "Clusters, the largest first" + (f"; {more:,} more are left out" if more else "")
    columns = ("cluster", "images", "share", "confident", "the surest", "the least sure")
    return Table(caption, columns, rows, interactive=True)


def _moved(moves: Moves, pictures: PredictedPictures) -> Section:
    """What is in another cluster than the last time."""
    total = sum(moves.counts.values())
    intro = (
        f"{total:,} of {counted(moves.known, 'image')} that were there before are in another "
        "cluster now."
    )
    blocks: list[Block] = []
    if moves.renumbered:
        intro += (
            " The clusters have other numbers than before: each was matched with that which now "
            "has most of its images, and only images outside it count as moved."
        )
        rows = [(str(then), str(now)) for then, now in moves.matched.items() if then != now]
        blocks.append(Table.of("New numbers", ("before", "now"), rows[:MOST_ROWS]))
    if not total:
        return Section("moved", "Moved since the last time", blocks, intro)
    first = moves.examples[:_MOST_MOVED]
    files = pictures.read(first)
    shown = [
        pictures.shown(image, f"from cluster {image.before} to {image.cluster}", files[image])
        for image in first
        if image in files
    ]
    if shown:
        some = f"{len(shown)} of {total:,}"
        group = PictureGroup(some, [PictureRow("the surest", shown)])
        blocks.append(Pictures("Images that moved", "Those nearest to their new centre.", [group]))
    pairs = [
        (str(then), str(now), count) for (then, now), count in moves.counts.most_common(MOST_ROWS)
    ]
    blocks.append(Table.of("How many moved", ("from cluster", "to cluster", "images"), pairs))
    names = [(image.name, str(image.before), str(image.cluster)) for image in moves.examples]
    caption = "Images that moved" + (f", the surest {len(names)}" if len(names) < total else "")
    blocks.append(Table.of(caption, ("image", "from cluster", "to cluster"), names))
    return Section("moved", "Moved since the last time", blocks, intro)


def _errors(data: PredictionsData) -> Table:
    caption = counted(data.num_errors, "image")
    if data.num_errors > len(data.errors):
        caption += f"; the first {len(data.errors)} are shown, all are in errors.parquet"
    return Table.of(caption, ("image", "reason"), data.errors)
