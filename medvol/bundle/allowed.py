"""What an untrusted bundle may name: the table, and nothing outside of it.

A config is code: a name in it is called with arguments of its author's choice. A bundle that is
neither shipped nor trusted is therefore read against this list. What is not here needs
``--trust-bundle``, whatever package it lies in: ``monai.networks.utils.save_state`` and
``PersistentDataset`` write and unpickle files, and lie beside harmless networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Package of the definition -> names of classes and functions that may be called.
NAMES: dict[str, frozenset[str]] = {
    package: frozenset(names.split())
    for package, names in {
        "monai.networks": """
            AHNet AttentionUnet AutoEncoder BasicUNet BasicUNetPlusPlus Classifier Critic DAF3D
            DenseNet DenseNet121 DenseNet169 DenseNet201 DenseNet264 Discriminator DynUNet
            FullyConnectedNet GlobalNet HighResNet LocalNet MedNeXt Quicknat RegUNet Regressor
            ResNet SegResNet SegResNetDS SegResNetDS2 SegResNetVAE SENet SEResNet50 SEResNet101
            SEResNet152 SEResNext50 SEResNext101 SwinUNETR UNet UNETR VarAutoEncoder ViT ViTAutoEnc
            VNet VoxelMorph VoxelMorphUNet
        """,
        "monai.losses": """
            DeepSupervisionLoss DiceCELoss DiceFocalLoss DiceLoss FocalLoss GeneralizedDiceFocalLoss
            GeneralizedDiceLoss HausdorffDTLoss MaskedDiceLoss SSIMLoss TverskyLoss
        """,
        "monai.metrics": """
            ConfusionMatrixMetric DiceMetric GeneralizedDiceScore HausdorffDistanceMetric MAEMetric
            MeanIoU MSEMetric RMSEMetric ROCAUCMetric SurfaceDiceMetric SurfaceDistanceMetric
        """,
        "monai.inferers": """
            SimpleInferer SlidingWindowInferer SlidingWindowInfererAdapt SliceInferer
        """,
        "monai.data": "DataLoader Dataset list_data_collate pad_list_data_collate",
        "monai.engines": "SupervisedEvaluator SupervisedTrainer",
        "monai.handlers": """
            CheckpointLoader ConfusionMatrix HausdorffDistance LrScheduleHandler MeanAbsoluteError
            MeanDice MeanIoUHandler MeanSquaredError ROCAUC StatsHandler SurfaceDistance
            ValidationHandler
        """,
        "monai.optimizers": "Novograd WarmupCosineSchedule",
        "monai.transforms": """
            Activationsd AddCoordinateChannelsd AdjustContrastd Affined AsChannelLastd AsDiscreted
            BorderPadd BoundingRectd CastToTyped CenterScaleCropd CenterSpatialCropd
            ClipIntensityPercentilesd Compose ConcatItemsd ConvertToMultiChannelBasedOnBratsClassesd
            CopyItemsd CropForegroundd DeleteItemsd DivisiblePadd EnsureChannelFirstd EnsureTyped
            FgBgToIndicesd FillHolesd Flipd ForegroundMaskd FromMetaTensord GaussianSharpend
            GaussianSmoothd HistogramNormalized Identityd Invertd KeepLargestConnectedComponentd
            LabelFilterd LabelToMaskd LoadImaged MapLabelValued MaskIntensityd MeanEnsembled
            MedianSmoothd NormalizeIntensityd OneOf Orientationd ProbNMSd Rand2DElasticd
            Rand3DElasticd RandAdjustContrastd RandAffined RandAxisFlipd RandBiasFieldd
            RandCoarseDropoutd RandCropByLabelClassesd RandCropByPosNegLabeld RandFlipd
            RandGaussianNoised RandGaussianSharpend RandGaussianSmoothd RandGibbsNoised
            RandGridDistortiond RandHistogramShiftd RandRicianNoised RandRotate90d RandRotated
            RandScaleCropd RandScaleIntensityFixedMeand RandScaleIntensityd RandShiftIntensityd
            RandSimulateLowResolutiond RandSpatialCropSamplesd RandSpatialCropd
            RandStdShiftIntensityd RandWeightedCropd RandZoomd RandomOrder RemoveSmallObjectsd
            RepeatChanneld ResampleToMatchd ResizeWithPadOrCropd Resized Rotate90d Rotated
            SaveImaged ScaleIntensityRangePercentilesd ScaleIntensityRanged ScaleIntensityd
            SelectItemsd ShiftIntensityd SomeOf Spacingd SpatialCropd SpatialPadd SpatialResampled
            SplitDimd SqueezeDimd StdShiftIntensityd ThresholdIntensityd ToDeviced ToMetaTensord
            ToNumpyd ToTensord Transposed VoteEnsembled Zoomd
        """,
        "torch.nn": """
            BatchNorm1d BatchNorm2d BatchNorm3d BCELoss BCEWithLogitsLoss Conv1d Conv2d Conv3d
            CrossEntropyLoss Dropout Dropout2d Dropout3d ELU Flatten GELU GroupNorm HuberLoss
            Identity InstanceNorm2d InstanceNorm3d L1Loss LayerNorm LeakyReLU Linear MaxPool2d
            MaxPool3d MSELoss PReLU ReLU ReLU6 Sequential Sigmoid SiLU SmoothL1Loss Softmax Tanh
        """,
        "torch.optim": """
            Adagrad Adam Adamax AdamW ConstantLR CosineAnnealingLR ExponentialLR LinearLR
            MultiStepLR NAdam OneCycleLR PolynomialLR RAdam ReduceLROnPlateau RMSprop SGD StepLR
        """,
        "ignite.handlers": "EMAHandler",
        "ignite.metrics": "Accuracy MeanAbsoluteError MeanSquaredError Precision Recall",
        "medvol.datasets": """
            ResultLayout class_evaluation_cases class_inference_cases evaluation_cases
            inference_cases
        """,
        "medvol.engines": """
            ClassificationScores ProgressBar SegmentationScores ValidateInputd ValidateSized
            begin_run find_bundle_root require_cases
        """,
        "medvol.explain": "CAMInferer ExplanationWriter",
        "medvol.inferers": "Decision PredictionPipeline SlidingWindowInferer ToSourceGridd",
        "medvol.networks": """
            Ensemble GradientClassifier SidedNetwork SubpixelUNet VolumeClassifier with_weights
        """,
        "medvol.transforms": "CleanLabelMapd Spacingd ToGreyImaged",
        "medvol.uncertainty": "PredictionTable",
    }.items()
}

#: Expressions, to the letter, that bundles hold and that call nothing of the bundle's author.
EXPRESSIONS = frozenset(
    {
        "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "$@bundle_root + '/models/model.pt'",
        "$@bundle_root + '/models/operating.json'",
        "$'cuda' in str(@device)",
        "$len(@labels)",
        "$np.float32",
        "$@begin",
        "$@has_cases",
        "$@evaluator.run()",
    }
)

#: Arguments that load code, unpickle, download or cache, whoever takes them.
FORBIDDEN_ARGUMENTS = frozenset(
    {"allow_pickle", "cache_dir", "converter", "func", "pickle_module", "pickle_protocol",
     "pretrained", "pretrained_path", "weights_only"}
)  # fmt: skip
#: Arguments by which MONAI imports whatever a text names -> the texts that may stand there.
IMPORTING_ARGUMENTS: Mapping[str, frozenset[str]] = {
    "reader": frozenset({"medvol.io.MedvolReader"}),
    "writer": frozenset({"medvol.io.MedvolWriter"}),
}
#: The one folder that may be written to: the user's.
OUTPUT = "@output_dir"
_LOADED_BY_US = re.compile(r"preprocessing::transforms::\d+")
_DROPPED_BY_US = re.compile(r"postprocessing::transforms::\d+")


def name_fault(module: str, name: str) -> str | None:
    """Why a class or function may not be called; None if it may.

    Args:
        module: Module that defines it.
        name: Its own name, which an alias of it does not have.
    """
    packages = (f"{module}.".startswith(f"{package}.") and name in names
                for package, names in NAMES.items())  # fmt: skip
    return None if any(packages) else "is not on the list of medvol/bundle/allowed.py"


def argument_fault(id_: str, node: Mapping[str, Any]) -> str | None:
    """Why a component's arguments are not allowed; None if they are.

    Args:
        id_: MONAI's id of the component in its config.
        node: The component.
    """
    for name in sorted(FORBIDDEN_ARGUMENTS & node.keys()):
        if node[name] not in (None, False):
            return f"passes {name!r}, which can load code or files"
    for name, texts in IMPORTING_ARGUMENTS.items():
        given = node.get(name)
        if given is not None and not (isinstance(given, str) and given in texts):
            return f"passes {name}={str(given)[:40]!r}; only {' or '.join(sorted(texts))} may be"
    if node.get("output_dir") not in (None, OUTPUT):
        return f"writes to {str(node['output_dir'])[:40]!r}; only {OUTPUT} may be"
    return _file_fault(id_, node)


def _file_fault(id_: str, node: Mapping[str, Any]) -> str | None:
    """Readers and writers of files stand where medvol replaces them, and nowhere else."""
    target = str(node["_target_"]).rpartition(".")[2]
    if target == "LoadImaged" and "reader" not in node and not _LOADED_BY_US.fullmatch(id_):
        return "names no reader, and MONAI's own unpickle"
    if target == "SaveImaged" and not _DROPPED_BY_US.fullmatch(id_):
        return "writes files elsewhere than as a step of the postprocessing"
    is_placed = "folder_layout" in node or node.get("output_dir") == OUTPUT
    return (
        f"names no output_dir; write {OUTPUT}" if target == "SaveImaged" and not is_placed else None
    )
