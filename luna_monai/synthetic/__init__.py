"""Synthetic LUNA16 datasets: CTs of the thorax with vessels, nodules and structures that look like nodules."""

from luna_monai.synthetic.dataset import write_dataset

__all__ = ["write_dataset"]
