"""Overrides of a policy that trains in a second and has all the parts of the default one, on the fake data set."""

TINY = [
    "dataset=fake",
    "vision.channels=[8,16]",
    "vision.width=16",
    "vision.num_keypoints=8",
    "fusion.width=16",
    "head.channels=[16,32]",
    "head.time_width=16",
    "horizon=8",
    "n_action_steps=4",
    "trainer.batch_size=8",
    "trainer.val_samples=8",
    "device=cpu",
]
