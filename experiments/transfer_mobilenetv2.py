"""Transfer of MobileNetV2 from one set of images to another: a new head first, then fine-tuning.

    python -m experiments.transfer_mobilenetv2                      # all stages, each kept for later runs
    python -m experiments.transfer_mobilenetv2 --stage head         # only the new head
    python -m experiments.transfer_mobilenetv2 --stage head --backbone random
    python -m experiments.transfer_mobilenetv2 --stage scratch

Measured on 736 photographs of flowers in 5 classes at 64×64 pixels (seed 0), on two cores of an Intel Xeon
with jax 0.10.2, while other work ran on the same cores. Test accuracy with its 95 % interval:

    head on the frozen backbone             42.1 %  38.6 to 45.7      143 s
    head on a random frozen backbone        26.8 %  23.7 to 30.1      198 s
    fine-tuned                              70.5 %  67.1 to 73.7    1,333 s

The backbone took 20 min more. Without published weights, it is trained on CIFAR-10 first, and the run says
so.
"""

from typing import Literal

from dl import Experiment, KeepBest, main, optimizers, task
from dl.data import image_classification
from dl.data.images.image_data_generator import image_data_generator
from dl.models.mobilenet import mobilenet_v2
from dl.models.transfer import WithHead
from dl.models.weights import names as torch_names
from dl.models.weights.pretrained import pretrained
from dl.option_types import DatasetName, ImageSize, NumEpochs, Seed
from dl.warm_start import FromExperiment, WarmStart, nested
from experiments import mobilenetv2

augment = image_data_generator(
    rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, shear_range=0.2, zoom_range=0.2,
    horizontal_flip=True, fill_mode="nearest",
)  # fmt: skip


def experiment(
    dataset: DatasetName = "flower_photos_96",
    stage: Literal["head", "finetune", "scratch"] = "finetune",
    backbone: str = "cifar10_jpeg",
    image_size: ImageSize = 64,
    num_epochs: NumEpochs = 30,
    smoke: bool = False,
    seed: Seed = 0,
) -> Experiment:
    """Returns one stage, which starts from the variables that the stage before it ends with.

    Args:
      stage: Stage: head (the backbone is frozen), finetune (starts from the end of head) or scratch (starts
        from random parameters).
      backbone: Where the weights of the backbone come from: training on a data set (its name), random, or
        published weights (a safetensors file or a name on the Hugging Face hub).
      num_epochs: Largest number of passes over the training split. A stage ends earlier if the validation
        loss has not fallen for ten passes.
      smoke: Train a narrow network on 32×32 pixels, to test quickly that all works.
    """
    width = 0.35 if smoke else 1.0
    data = image_classification(dataset, image_size=32 if smoke else image_size)
    model = WithHead(mobilenet_v2(None, width), data.num_classes, hidden=(128,))
    num_steps = data.steps(num_epochs, 32)
    slow, fast = (optimizers.cosine(peak, num_steps, warmup_steps=num_steps // 10) for peak in (5e-4, 1e-3))
    tx = optimizers.adam(fast)
    start: WarmStart | None = None
    frozen = {"head": ("^backbone/",), "finetune": ("^backbone/stem/",), "scratch": ()}[stage]
    if stage == "head" and "/" in backbone:
        start = pretrained(backbone, torch_names.mobilenet_v2, "backbone", skip=("head",))
    elif stage == "head" and backbone != "random":
        source = {"dataset": backbone, "width": width, "num_epochs": 1 if smoke else 8}
        start = FromExperiment(mobilenetv2.experiment, source, lambda v: nested(v, "backbone", ("head",)))
    elif stage == "finetune":
        head = {"dataset": dataset, "stage": "head", "backbone": backbone, "image_size": image_size}
        head |= {"num_epochs": num_epochs, "smoke": smoke, "seed": seed}
        start = FromExperiment(experiment, head)
        tx = optimizers.by_path({"^backbone/block[0-6]/": optimizers.adam(slow), "": optimizers.adam(fast)})
    return Experiment(
        data=data,
        warm_start=start,
        frozen=frozen,
        augment=augment,
        task=task.classification(model),
        tx=tx,
        num_steps=num_steps,
        batch_size=32,
        keep_best=KeepBest(patience=10),
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
