"""Answer requests with the clusters of a run: CONR_RAY_RUN=DIR serve run examples.serve:app.

POST /          an encoded image -> {"cluster", "boundary_ratio", "confident"}
POST /?embed=1  the same with "embedding"; GET /health: the run and its number of clusters
"""

import os
from typing import Any

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from conr_ray import TrainedRun
from conr_ray.data.decoding import conformed, open_encoded
from conr_ray.errors import one_line

MOST_BYTES = int(os.environ.get("SERVE_MOST_BYTES", 10 * 2**20))


@serve.deployment(max_ongoing_requests=128)
class Clusters:
    """A copy of the run."""

    def __init__(self, run: str) -> None:
        self.uri, self.run = run, TrainedRun.load(run)
        self.stored_size = self.run.config.data.stored_size
        self.channels, self.height, self.width = self.run.sample_shape

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01)
    async def place(self, images: list[np.ndarray]) -> list[dict[str, Any]]:
        """Answers to several requests at once."""
        told, sure = self.run.place(np.stack(images)), self.run.confident_ratio
        rows = zip(told.clusters_n, told.boundary_ratios_n, told.embeddings_nd, strict=True)
        return [
            {"cluster": int(cluster), "boundary_ratio": float(ratio), "embedding": row.tolist()}
            | {"confident": None if sure is None else float(ratio) <= sure}
            for cluster, ratio, row in rows
        ]

    async def __call__(self, request: Request) -> JSONResponse:
        """The cluster of the image in a request's body, or facts at `/health`."""
        if request.url.path == "/health":
            return JSONResponse({"run": self.uri, "num_clusters": self.run.num_clusters})
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                return JSONResponse({"error": f"give at most {MOST_BYTES} bytes"}, 413)
        try:
            shape = self.channels, self.height, self.width
            image = conformed(open_encoded(body), shape, self.stored_size)
        except Exception as error:
            return JSONResponse({"error": f"the body is no image: {one_line(error)}"}, 400)
        answer = await self.place(image)
        left_out = () if request.query_params.get("embed") else ("embedding",)
        return JSONResponse({k: v for k, v in answer.items() if k not in left_out})


if "CONR_RAY_RUN" not in os.environ:
    raise SystemExit(f"set CONR_RAY_RUN to the folder of a run: {__doc__.splitlines()[0]}")
app = Clusters.bind(os.environ["CONR_RAY_RUN"])
