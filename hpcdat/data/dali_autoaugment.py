"""AutoAugment with DALI: its policy and its operations, with the random choices made outside it.

DALI's own ``apply_auto_augment`` draws inside the pipeline, from a state that changes with every batch, so
that what is done to an image would depend on all that was read before it. Here the choices for an image are a
function of seed and image, made with its view, and the pipeline receives them as data.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.auto_aug.augmentations import identity
from nvidia.dali.auto_aug.auto_augment import get_reduced_image_net_policy
from nvidia.dali.auto_aug.core import select, signed_bin
from nvidia.dali.data_node import DataNode

from hpcdat.data.augmentation import POLICY_FILL, policy_seed


class AutoAugment:
    """The policy that Cubuk et al. (2019) found on a part of ImageNet; torchvision's is the same.

    DALI's ``get_image_net_policy`` is another one, that of TensorFlow's models.

    Attributes:
        sub_policies: one of them is applied to an image: one or two triples of an operation, its
            probability and the number of its magnitude.
        operations: all that there are; the first does nothing.
    """

    def __init__(self) -> None:
        policy = get_reduced_image_net_policy()
        self.sub_policies = policy.sub_policies
        self.operations = [identity, *policy.augmentations.values()]
        self._magnitudes = policy.num_magnitude_bins
        self._stages = max(map(len, policy.sub_policies))

    def choices(self, index: int, seed: int) -> NDArray[np.int32]:
        """The operations for one image, a pure function of both arguments.

        Args:
            index: its position in the list of images.
            seed: of the epoch.

        Returns:
            (stages, 3): the number of the operation (0 does nothing), of its magnitude, and 1 where
            that is negated, if it has a sign.
        """
        random = np.random.default_rng(policy_seed(index, seed))
        sub_policy = self.sub_policies[int(random.integers(len(self.sub_policies)))]
        choices = np.zeros((self._stages, 3), dtype=np.int32)
        for stage, (operation, probability, magnitude) in enumerate(sub_policy):
            if random.random() < probability:
                number = self.operations.index(operation)
                choices[stage] = number, magnitude or 0, random.integers(2)
        return choices

    def apply(self, images: DataNode, choices: DataNode) -> DataNode:
        """Apply the chosen operations to images, in a pipeline with conditionals.

        Args:
            images: (H, W, 3), uint8, on the CPU or the GPU.
            choices: those of each image, on the CPU.
        """
        images = fn.reshape(images, layout="HWC")
        # DALI's operations warn about deprecated names of its own operators, regardless of filters.
        with warnings.catch_warnings(record=True):
            for stage in range(self._stages):
                images = select(
                    self.operations,
                    choices[stage, 0],
                    images,
                    magnitude_bin=signed_bin(choices[stage, 1], random_sign=choices[stage, 2]),
                    num_magnitude_bins=self._magnitudes,
                    fill_value=POLICY_FILL,
                )
        return images
