"""Clustering: each layer's weights take few different values, by TF-MOT.

Han et al., https://arxiv.org/abs/1510.00149, section 3. A file holds each value once, and gzip
finds the rest: nothing becomes faster.
"""

from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..sparsity import is_sparse
from .job import Candidate, Job, chosen, kernels, plainly, rate_of
from .settings import Cluster

if TYPE_CHECKING:
    import tf_keras as keras


@plainly
def cluster(before: Candidate, job: Job, settings: Cluster) -> Candidate:
    """Return the model with at most `settings.clusters` different weights in each chosen layer.

    Zeros of pruned layers stay zero (TF-MOT's preserve_sparsity).

    Raises:
        ConfigError: a layer has fewer weights than clusters; it is named.
    """
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    names = set(chosen(job, before.model, "cluster", settings.exclude, all_of=False))
    variables = kernels(before.model)
    for name in sorted(names):
        size = int(variables[name].shape.num_elements())
        if size < settings.clusters:
            raise ConfigError(
                f"compress.steps: cluster.clusters is {settings.clusters}, and the layer {name} "
                f"has {size} weights. Give fewer clusters, or exclude it."
            )
    model = job.copy(before)  # float32: TF-MOT puts float32 tensors in the place of weights

    def wrap(layer: "keras.layers.Layer") -> "keras.layers.Layer":
        if layer.name not in names:
            return layer
        return tfmot.clustering.keras.cluster_weights(
            layer,
            number_of_clusters=settings.clusters,
            cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.DENSITY_BASED,
            preserve_sparsity=is_sparse(variables[layer.name].numpy()),
        )

    clustered = keras.models.clone_model(model, clone_function=wrap)
    if settings.epochs:
        job.tune(clustered, "cluster", settings.epochs, rate_of(settings, job, 0.1))
    weights = tfmot.clustering.keras.strip_clustering(clustered).get_weights()
    return job.next(before, "cluster", weights)
