"""Adam in one pass over the weights."""

from typing import Any

import tensorflow as tf
import tf_keras as keras


class Adam(keras.optimizers.Adam):
    """Keras' Adam, or its AdamW, as one op for each weight.

    The same numbers as tf_keras' own (Kingma & Ba 2014; Loshchilov & Hutter 2019), which on a CPU
    go over the weights, the moments and the gradient a dozen times: a quarter of MiniLM's step.

    Args:
        learning_rate: the rate, or its schedule.
        decay: what a weight loses of itself in each step, times the rate; names given to
            `exclude_from_weight_decay` are spared.
    """

    def __init__(self, learning_rate: Any, decay: float = 0.0) -> None:
        super().__init__(learning_rate)
        self.decay = decay

    def update_step(self, gradient: Any, variable: Any) -> None:
        """Change one weight; a sparse gradient, of an embedding, is made dense."""
        if self.decay and self._use_weight_decay(variable):
            variable.assign(variable * (1 - self.learning_rate * self.decay))
        step = tf.cast(self.iterations + 1, variable.dtype)
        place = self._index_dict[self._var_key(variable)]
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[place].handle,
            v=self._velocities[place].handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=self.learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.convert_to_tensor(gradient),
        )
