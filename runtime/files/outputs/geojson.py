"""Labels as GeoJSON, in QuPath's dialect: a feature for each label, with its measurements.

Objects are detections, named after their label. Classes are annotations with a classification, as QuPath's own pixel
classifier makes them. Coordinates are pixels from the top left corner, and follow the edges of pixels. Frames of a
stack have a `plane`, which counts T and Z from 0. Identifiers follow from the name and the labels, so that the same
labels give the same file.

https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html#geojson
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import msgspec
import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import printable
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.outputs.polygons import Polygon
from unetrt.runtime.pixels.drawing import colour_of

Array = NDArray[Any]

# Namespace of the identifiers of features (RFC 9562, section 5.5).
FEATURES = UUID("6f2d4b1e-0d7a-5c0c-9a53-6b1f3c9e7d21")


def write_geojson(path: str | Path, image: LabelledImage) -> None:
    """Write the labels of an image as GeoJSON, atomically; raises OutputError if the file cannot be written."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(b'{"type":"FeatureCollection","features":[')
        for number, feature in enumerate(features(image)):
            file.write((b",\n" if number else b"\n") + msgspec.json.encode(feature))
        file.write(b"\n]}\n")


def features(image: LabelledImage) -> Iterator[dict[str, Any]]:
    """Yield the feature of each label."""
    name = printable(image.name)
    for frame, position in enumerate(image.positions()):
        plane = {"c": position.get("C", -1), "z": position.get("Z", 0), "t": position.get("T", 0)}
        rows = chain.from_iterable(map(_rows, image.columns(frame)))
        for polygon, row in zip(image.polygons(frame), rows, strict=True):
            geometry = geometry_of(polygon) | ({"plane": plane} if position else {})
            yield {
                "type": "Feature",
                "id": str(uuid5(FEATURES, f"{name}/{frame}/{polygon.label}")),
                "geometry": geometry,
                "properties": _properties(image.kind == "classes", polygon.label, row),
            }


def _rows(measured: Mapping[str, Array]) -> Iterator[dict[str, float]]:
    """Yield the measurements of each label by name."""
    for row in zip(*(values.tolist() for values in measured.values()), strict=True):
        yield dict(zip(measured, row, strict=True))


def geometry_of(polygon: Polygon) -> dict[str, Any]:
    """Return the geometry of a label: a polygon, or a multipolygon of its parts."""
    parts = [[_closed(ring) for ring in part] for part in polygon.parts]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _closed(ring: NDArray[np.int32]) -> list[list[int]]:
    points: list[list[int]] = ring.tolist()
    return [*points, points[0]]


def _properties(is_class: bool, label: int, measured: Mapping[str, float]) -> dict[str, Any]:
    """Return the properties of a label; measurements that are not finite are left out, as JSON has none."""
    properties: dict[str, Any] = {
        "objectType": "annotation" if is_class else "detection",
        "name": f"class {label}" if is_class else str(label),
        "measurements": {name: value for name, value in measured.items() if isfinite(value)},
    }
    if is_class:
        properties["classification"] = {"name": f"class {label}", "color": colour_of(label)}
    return properties
