"""A synthetic LUNA16: thoraces with vessels, nodules and what looks like nodules."""

from luna_monai.synthetic.dataset import write_dataset

__all__ = ["write_dataset"]
