"""Clustering: each layer's weights take few different values, by TF-MOT.

Han et al., https://arxiv.org/abs/1510.00149, section 3. A file holds each value once, and gzip
finds the rest: nothing becomes faster.
"""

from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..sparsity import is_sparse
from .job import Candidate, Job, chosen, kernels, plainly, rate_of
from .settings import Cluster
from .teach import learn

if TYPE_CHECKING:
    import numpy as np
    import tf_keras as keras

_ROUNDS = 20  # of k-means; MiniLM's embedding changes little after ten


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
            cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.LINEAR,
            preserve_sparsity=is_sparse(variables[layer.name].numpy()),
        )

    clustered = keras.models.clone_model(model, clone_function=wrap)
    for layer in clustered.layers:
        if hasattr(layer, "cluster_centroids"):
            _begin(layer, variables[layer.layer.name].numpy())
    if settings.epochs:
        rate = rate_of(settings, job, 0.1)
        learn(clustered, job, before.layers, "cluster", settings.epochs, rate)
    weights = tfmot.clustering.keras.strip_clustering(clustered).get_weights()
    return job.next(before, "cluster", weights)


def _begin(wrapper: Any, values: "np.ndarray") -> None:
    """Let TF-MOT's wrapper begin with k-means: its own beginnings leave twice the squared error on
    MiniLM's embedding, and training does not make up for it."""
    import tensorflow as tf

    for name, centroids in wrapper.cluster_centroids.items():
        centroids.assign(kmeans(values, int(centroids.shape[0])))
        if wrapper.preserve_sparsity:  # the wrapper took these from its own beginning
            wrapper.zero_idx[name] = tf.argmin(tf.abs(centroids))
            wrapper.sparsity_masks[name] = tf.cast(values != 0, tf.float32)


def kmeans(values: "np.ndarray", clusters: int) -> "np.ndarray":
    """Centroids of all values, float32 [clusters], from evenly filled ones (Lloyd's algorithm).

    Of a pruned weight 0 is one of them, and the others are those of what is left.
    """
    import numpy as np

    if is_sparse(values):
        return np.append(kmeans(values[values != 0], clusters - 1), np.float32(0))
    flat = values.ravel()
    if not flat.size:
        return np.zeros(clusters, np.float32)
    centroids = np.quantile(flat, (np.arange(clusters) + 0.5) / clusters)
    for _ in range(_ROUNDS):
        places = nearest(centroids, flat)
        counts = np.bincount(places, minlength=clusters)
        sums = np.bincount(places, weights=flat, minlength=clusters)
        centroids = np.sort(np.where(counts > 0, sums / np.maximum(counts, 1), centroids))
    return centroids.astype(np.float32)


def nearest(centroids: "np.ndarray", values: "np.ndarray") -> "np.ndarray":
    """The place of each value's nearest centroid; they are sorted."""
    import numpy as np

    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
