"""Export a model for serving with torch.export and ONNX, and check both against the model itself.

python scripts/export.py --model lipsformer_swin_tiny --weights outputs/lipsformer_swin_tiny/checkpoints/best.pt

Writes OUT/MODEL.pt2 and OUT/MODEL.onnx; any number of images goes in. A checkpoint of this project brings its model's
options, classes and image size. Needs requirements-dev.txt (onnx, onnxruntime).
"""

import argparse
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryFile

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import models
from engine.checkpoint import checked, is_ours, lacking
from engine.errors import USER_ERRORS, UserError

TOLERANCE = 1e-4  # of the largest logit: float32 in another order


def difference(outputs: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value."""
    return float((outputs - expected).abs().max() / expected.abs().max())


def export(model: nn.Module, side: int, path: Path) -> dict[str, float]:
    """Write ``path`` with .pt2 and .onnx after its name, in which points may stand (``resnet50.a1_in1k``).

    Args:
        model: in evaluation mode, on the CPU.
        side: side of the images in pixels.
        path: without a suffix.

    Returns:
        How far each of the two, read back from its file, is from the model on images it was not traced with: the
        largest difference over the largest logit.
    """
    pt2, onnx = (path.with_name(path.name + ending) for ending in (".pt2", ".onnx"))
    traced, fresh = torch.randn(2, 3, side, side), torch.randn(3, 3, side, side)
    batch = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' remarks on their own deprecations
        expected = model(fresh)
        program = torch.export.export(model, (traced,), dynamic_shapes=batch)
        torch.export.save(program, pt2)
        from_export = torch.export.load(pt2).module()(fresh)
        torch.onnx.export(program, (), str(onnx), external_data=False, verbose=False)
    from_onnx = run_onnx(onnx, fresh)
    return {"torch.export": difference(from_export, expected), "ONNX": difference(from_onnx, expected)}


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """The outputs of an ONNX file in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(outputs)


def trained(name: str, weights: Path | None, num_classes: int | None, img_size: int | None) -> tuple[nn.Module, int]:
    """The model to export, in evaluation mode, and the side of its images in pixels.

    Args:
        name: of the model.
        weights: a checkpoint or a file of weights; None: untrained.
        num_classes: None: those of the checkpoint, else the model's own.
        img_size: None: that of the checkpoint, else the model's own.

    Raises:
        ModelError: or another of ``engine.errors.USER_ERRORS`` if there is no such model or file, or they do not fit.
    """
    models.refuse_unknown(name)
    content = models.read_file(weights) if weights is not None else None
    cfg = models.ModelConfig(name=name)
    # Weights alone do not tell: certified attention has the same as the released form and computes something else.
    if weights is not None and is_ours(content):
        state = checked(content, weights)
        if missing := lacking(state):
            raise UserError(f"{weights} lacks {', '.join(missing)}: save its weights alone to export {name} with them")
        cfg = OmegaConf.to_object(OmegaConf.merge(models.FAMILIES[state["family"]], state["config"]["model"]))
        if cfg.name != name:
            raise models.ModelError(f"{weights} is of {cfg.name}: set --model {cfg.name}")
        cfg.num_classes, cfg.img_size = len(state["classes"]), state["config"]["data"]["crop"]
    registered = models.registration(name)
    own_classes, own_size = (registered.num_classes, registered.input_size[-1]) if registered else (1000, 224)
    cfg.num_classes = num_classes or cfg.num_classes
    cfg.img_size = img_size or cfg.img_size or own_size
    model = models.build_model(cfg, own_classes, cfg.img_size).eval()
    if weights is not None:
        models.load_weights(model, weights)
    return model, cfg.img_size


def positive(text: str) -> int:
    """A number of the command line that counts something.

    Raises:
        ArgumentTypeError: if it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of 1 or more")
    return int(text)


def make_folder(path: Path) -> None:
    """Make the folder for the files.

    Raises:
        UserError: if it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror}): name another folder") from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model of this project or of timm")
    parser.add_argument("--weights", type=Path, help="a checkpoint or a file of weights; without: untrained")
    parser.add_argument(
        "--num-classes", type=positive, help="default: the checkpoint's, else the model's own, mostly 1000"
    )
    parser.add_argument("--img-size", type=positive, help="default: the checkpoint's, else the model's own, mostly 224")
    parser.add_argument("--out", type=Path, default=Path("exported"))
    args = parser.parse_args()
    try:
        make_folder(args.out)
        model, side = trained(args.model, args.weights, args.num_classes, args.img_size)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = export(model, side, args.out / args.model)
    for kind, value in found.items():
        print(f"{kind:12}  largest difference {value:.1e} of the largest logit")
    if not all(value <= TOLERANCE for value in found.values()):  # NaN is no small difference
        print(f"error: more than {TOLERANCE:g}: do not serve these files", file=sys.stderr)
        return 1
    print(f"written      {args.out / args.model}.pt2 and .onnx")
    return 0


if __name__ == "__main__":
    sys.exit(main())
