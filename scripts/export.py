"""Hand a trained model to others, and check what they will load against the model itself.

python scripts/export.py outputs/lipsformer_swin_tiny --to handed_over
python scripts/export.py outputs/lipsformer_swin_tiny --to handed_over --push-to-hub USER/NAME

writes model.safetensors, config.json and a model card, which timm loads, and the program of torch.export (model.pt2)
and ONNX (model.onnx), which need none of our code. Weights without a run:

python scripts/export.py --model lipsformer_swin_tiny --weights best.pt --out exported

writes only OUT/MODEL.pt2 and OUT/MODEL.onnx. Programs accept any batch size from 1 to 4096. For a checkpoint of this
project, the model's options, classes and image size come from the checkpoint. Needs requirements-dev.txt (onnx,
onnxruntime).
"""

import argparse
import shutil
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import models
from engine.checkpoints.checkpoint_file import checked, is_ours, lacking
from engine.checkpoints.hub import TrainedModel, push
from engine.checkpoints.saved_model import model_settings
from engine.errors import UserError
from scripts.common.command_line import command, parser_of, positive

TOLERANCE = 1e-4  # relative to the largest logit; float32 results differ if operations run in another order
ROOM = 16 * 2**20  # bytes for the graphs of operations


def difference(outputs: Tensor, expected: Tensor) -> float:
    """Return the largest difference divided by the largest expected value, unless all of them are zero."""
    largest = float(expected.abs().max()) or 1.0  # an untrained model may have a head of zeros
    return float((outputs - expected).abs().max()) / largest


def export(model: nn.Module, side: int, path: Path) -> dict[str, float]:
    """Export the model to ``path`` + ``.pt2`` and ``path`` + ``.onnx``, and compare both files with the model.

    Args:
        model: the model in evaluation mode, on the CPU.
        side: side of the images in pixels.
        path: path without the ending. The name may contain dots (``resnet50.a1_in1k``).

    Returns:
        For each format, the largest difference to the model divided by the largest logit. The file is read back, and
        the images are not those used for tracing.
    """
    pt2, onnx = (path.with_name(path.name + ending) for ending in (".pt2", ".onnx"))
    traced, fresh = torch.randn(2, 3, side, side), torch.randn(3, 3, side, side)
    batch = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about their own deprecations
        expected = model(fresh)
        program = torch.export.export(model, (traced,), dynamic_shapes=batch)
        torch.export.save(program, pt2)
        from_export = torch.export.load(pt2).module()(fresh)
        torch.onnx.export(program, (), str(onnx), external_data=False, verbose=False)
    from_onnx = run_onnx(onnx, fresh)
    return {"torch.export": difference(from_export, expected), "ONNX": difference(from_onnx, expected)}


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """Run an ONNX file in onnxruntime on the CPU, and return its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(outputs)


def model_to_export(
    name: str, weights: Path | None, num_classes: int | None, img_size: int | None
) -> tuple[nn.Module, int]:
    """Build the model to export, in evaluation mode.

    Args:
        name: name of the model.
        weights: a checkpoint or a file of weights; None: random weights.
        num_classes: number of classes; None: that of the checkpoint, else the model's own.
        img_size: side of the images in pixels; None: that of the checkpoint, else the model's own.

    Returns:
        The model, and the side of its images in pixels.

    Raises:
        ModelError: or another of ``engine.errors.USER_ERRORS``, if model or file do not exist or do not fit.
    """
    models.refuse_unknown(name)
    cfg = models.ModelConfig(name=name)
    if weights is not None and is_ours(content := models.read_file(weights)):
        cfg = options_of(checked(content, weights), name, weights)
    registered = models.registration(name)
    own_classes, own_size = (registered.num_classes, registered.input_size[-1]) if registered else (1000, 224)
    cfg.num_classes = num_classes or cfg.num_classes
    cfg.img_size = img_size or cfg.img_size or own_size
    model = models.build_model(cfg, own_classes, cfg.img_size).eval()
    if weights is not None:
        try:
            for notice in models.load_resized(model, models.read_weights(weights), str(weights)):
                print(notice)
        except models.ModelError as error:
            if num_classes or "head" not in str(error):
                raise
            raise models.ModelError(f"{error}; --num-classes sets the number of classes") from error
    return model, cfg.img_size


def options_of(state: dict[str, Any], name: str, weights: Path) -> models.ModelConfig:
    """The options of the model in a checkpoint of this project.

    The weights alone are not enough: certified attention has the same weights as the released form, but computes other
    outputs.

    Raises:
        ModelError: if the checkpoint is of another model.
        UserError: if it lacks something.
    """
    if missing := lacking(state):
        raise UserError(f"{weights} lacks {', '.join(missing)}: save only its weights, then export {name} with them")
    cfg = model_settings(state)
    if cfg.name != name:
        raise models.ModelError(f"{weights} is a checkpoint of {cfg.name}: set --model {cfg.name}")
    cfg.num_classes, cfg.img_size = len(state["classes"]), state["config"]["data"]["crop"]
    return cfg


def make_folder(path: Path, option: str) -> None:
    """Create the folder for the files.

    Raises:
        UserError: if it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written ({error.strerror}): choose another folder") from error


def refuse_full_disk(folder: Path, model: nn.Module, option: str) -> None:
    """Refuse to begin if the files would not fit. torch would end the process in the middle of a file.

    Raises:
        UserError: if the folder's disk has less free space than two copies of the weights and some room need.
    """
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    needed, free = 2.2 * weights + ROOM, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the files need about {needed / 1e6:.0f} MB, but the disk of {folder} has {free / 1e6:.0f} MB free: "
            f"free space, or choose another folder with {option}"
        )


def hand_over(args: argparse.Namespace) -> tuple[nn.Module, int, Path]:
    """Write the folder that timm reads; return the model, the side of its images and the path of its programs."""
    trained_model = TrainedModel(args.run, args.checkpoint, args.take)
    make_folder(args.to, "--to")
    refuse_full_disk(args.to, trained_model.model, "--to")
    trained_model.write(args.to, args.license)
    images = torch.randn(2, 3, trained_model.side, trained_model.side)
    with torch.no_grad():
        theirs = timm.create_model(f"local-dir:{args.to}", pretrained=True).eval()(images)
        far = difference(theirs, trained_model.model(images))
        if not far <= TOLERANCE:  # also catches NaN
            raise UserError(f"timm builds another model from {args.to}: its largest logit differs by {far:.1e}")
    return trained_model.model, trained_model.side, args.to / "model"


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where the files of the run's model are written")
    parser.add_argument("--checkpoint", default="last.pt", help="file in RUN/checkpoints; default: last.pt")
    parser.add_argument("--take", choices=("ema", "raw"), default="ema", help="which weights; default: ema")
    parser.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="upload the files to the Hugging Face hub, too; a new repository is public",
    )
    parser.add_argument("--license", help="of the weights, for the model card, such as apache-2.0")
    parser.add_argument("--model", help="instead of a run: a model of this project or of timm")
    parser.add_argument("--weights", type=Path, help="a checkpoint or a file of weights; without: untrained")
    parser.add_argument(
        "--num-classes", type=positive, help="default: the checkpoint's, else the model's own, mostly 1000"
    )
    parser.add_argument("--img-size", type=positive, help="default: the checkpoint's, else the model's own, mostly 224")
    parser.add_argument("--out", type=Path, default=Path("exported"))
    args = parser.parse_args()
    if (args.run is None) == (args.model is None):
        parser.error("give the folder of a run, or --model NAME")
    if args.run is None and (args.to or args.push_to_hub):
        parser.error("--to and --push-to-hub are for the folder of a run; with --model, use --out")
    if args.run is not None and args.to is None:
        parser.error("where to? add --to DIR")
    return args


@command
def main() -> int:
    args = parse()
    if args.run is not None:
        model, side, path = hand_over(args)
    else:
        make_folder(args.out, "--out")
        model, side = model_to_export(args.model, args.weights, args.num_classes, args.img_size)
        refuse_full_disk(args.out, model, "--out")
        path = args.out / args.model
    found = export(model, side, path)
    for kind, value in found.items():
        print(f"{kind:12}  largest difference {value:.1e} of the largest logit")
    if not all(value <= TOLERANCE for value in found.values()):  # also catches NaN
        print(f"error: more than {TOLERANCE:g}: do not serve these files", file=sys.stderr)
        return 1
    print(f"written      {path}.pt2 and .onnx" + (f", and what timm loads, in {args.to}" if args.run else ""))
    if args.push_to_hub:
        print(f"uploaded     {push(args.to, args.push_to_hub)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
