"""What reporting guidelines ask for, in our own words, and which facts answer it.

The topics follow CLAIM 2024 (Tejani et al., Radiology: Artificial Intelligence 2024), STARD-AI
(Sounderajah et al., Nature Medicine 2025) and TRIPOD+AI (Collins et al., BMJ 2024). They are
paraphrased and not numbered: the published wording was not at hand when they were written, and a
journal requires its own form. A topic is answered when any of its keys has a fact.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One thing that a guideline asks for.

    Attributes:
        section: Part of a paper.
        asks: The question, paraphrased.
        keys: Facts that answer it, most telling first.
    """

    section: str
    asks: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Checklist:
    """A guideline.

    Attributes:
        name: As published.
        file: Stem of the file that it is written to.
        topics: What it asks for.
    """

    name: str
    file: str
    topics: tuple[Topic, ...]


def _topics(section: str, rows: dict[str, str]) -> tuple[Topic, ...]:
    return tuple(Topic(section, asks, tuple(keys.split())) for asks, keys in rows.items())


CLAIM = Checklist(
    "CLAIM 2024",
    "claim",
    _topics("Title, abstract, introduction", {
        "The title or abstract names the AI technique": "title description",
        "A structured summary of design, methods, results and conclusions": "abstract",
        "Background, and the clinical role that the model is meant for": "background intended_use",
        "Aims and hypotheses": "objectives",
    }) + _topics("Study design", {
        "Prospective or retrospective": "design",
        "What kind of study it is: building, testing, comparing": "study_goal objectives",
    }) + _topics("Data", {
        "Where the data come from": "data_source",
        "Who is included and excluded, where and when": "eligibility setting recruitment_dates",
        "How images are prepared before the model sees them": "preprocessing",
        "Whether only a part of the data is used, and which": "participants data_selection",
        "How data were de-identified": "deidentification",
        "How missing data were handled": "missing_data",
        "How images are acquired: protocol, machines": "acquisition",
    }) + _topics("Reference standard", {
        "What counts as truth": "reference_classes reference_standard",
        "Why this reference": "reference_reason",
        "Who annotated, with what training": "annotators",
        "With which tool": "annotation_tool",
        "How much annotators vary": "annotator_variability",
    }) + _topics("Data partitions", {
        "How cases are assigned to training, validation and test": "partition",
        "At which level the parts are disjoint": "disjoint partition",
        "Sizes of the parts and why": "sample_size",
    }) + _topics("Model", {
        "The model in enough detail to build it again: inputs, layers, outputs": "network",
        "Software, frameworks and versions": "software",
        "How weights were initialised": "initialisation",
    }) + _topics("Training", {
        "Training in detail: augmentation, hyperparameters, epochs": "training augmentation",
        "How the final model was selected": "selection",
        "Ensembling, if any": "ensemble postprocessing",
    }) + _topics("Evaluation", {
        "Metrics of performance": "performance",
        "Statistics of significance and uncertainty": "statistics comparison",
        "How robust or sensitive the results are": "sensitivity_analysis subgroups",
        "How the model's decisions can be explained": "explainability",
        "Tested on internal data": "performance",
        "Tested on external data": "external",
        "Where the trial is registered": "registration",
    }) + _topics("Results", {
        "Flow of participants": "flow",
        "Demographics and clinical characteristics of each part": "demographics",
        "Performance on each part with its uncertainty": "performance",
        "Diagnostic accuracy with its precision": "performance",
        "What went wrong: failed and misclassified cases": "failures",
    }) + _topics("Discussion and other information", {
        "Limits, bias, generalisability": "limitations",
        "What follows for practice": "implications",
        "Where the full protocol is": "protocol",
        "Where code, model and data are": "availability weights",
        "Who paid, and what part they had": "funding",
    }),
)  # fmt: skip

STARD_AI = Checklist(
    "STARD-AI",
    "stard_ai",
    _topics("Title, abstract, introduction", {
        "Identified as a study of diagnostic accuracy of an AI test, with its measure": "title",
        "A structured summary": "abstract",
        "The AI test's intended use and clinical role, in the care pathway": "intended_use",
        "What is known already": "background",
        "Aims and hypotheses": "objectives",
    }) + _topics("Methods: design and participants", {
        "Ethical approval and consent": "ethics consent",
        "Whether data were collected before or after the tests were planned": "design",
        "Eligibility": "eligibility",
        "How participants were identified": "recruitment",
        "Where and when": "setting recruitment_dates sites",
        "Consecutive, random or chosen for convenience": "sampling",
    }) + _topics("Methods: data", {
        "Source of the data and whether it was collected for this purpose": "data_source",
        "How images were acquired": "acquisition",
        "How data were annotated, by whom": "annotators annotation_tool",
        "Preparation of data, exclusions, missing values": "preprocessing missing_data",
        "How the data were parted, and that no participant is in two parts": "partition disjoint",
    }) + _topics("Methods: tests", {
        "The AI test in enough detail to repeat it: version, input, output": "network version",
        "How the model was trained and tuned": "training selection",
        "Software and hardware that it needs": "software",
        "The reference standard, in enough detail to repeat it": "reference_standard",
        "Why this reference standard": "reference_reason",
        "Cut-offs of the AI test, and whether fixed before": "threshold",
        "Cut-offs of the reference standard": "reference_cutoff",
        "Who was blind to what": "blinding",
        "Who used the test, with what training, and what they saw": "users",
    }) + _topics("Methods: analysis", {
        "How accuracy is estimated and compared": "statistics comparison",
        "How indeterminate results are handled": "indeterminate failures",
        "How missing results are handled": "missing_data",
        "Variability across subgroups, sites, devices": "subgroups",
        "Sample size": "sample_size",
        "How bias and fairness are assessed": "fairness subgroups bias",
    }) + _topics("Results", {
        "Flow of participants": "flow",
        "Demographics and clinical characteristics": "demographics",
        "Severity of disease and alternative diagnoses": "severity classes",
        "Time and treatment between test and reference": "time_interval",
        "Cross tabulation of test and reference": "confusion",
        "Accuracy with its precision": "performance",
        "Results on external data": "external",
        "Harms of the tests": "adverse_events",
        "Errors of the test, looked into": "failures",
    }) + _topics("Discussion and other information", {
        "Limits: bias, uncertainty, generalisability": "limitations",
        "What follows for practice, and for whom": "implications",
        "Registration": "registration",
        "Where the protocol is": "protocol",
        "Funding and conflicts of interest": "funding conflicts",
        "Where code, model and data can be had, under which terms": "availability licence "
        "data_licence",
        "Whether the test is audited or monitored after release": "post_market_plan",
    }),
)  # fmt: skip

TRIPOD_AI = Checklist(
    "TRIPOD+AI",
    "tripod_ai",
    _topics("Title, abstract, introduction", {
        "Identified as building or testing a model; its population and outcome": "title task",
        "A structured summary": "abstract",
        "Health context and reasons for the model": "background",
        "Whom it is for and who will use it, where in the pathway": "intended_use users",
        "Known inequalities between groups": "inequalities",
        "Aims": "objectives",
    }) + _topics("Methods: data and participants", {
        "Source of the data for building and for testing": "data_source",
        "Dates": "recruitment_dates",
        "Setting, number and place of centres": "setting sites",
        "Eligibility": "eligibility",
        "Treatments received": "treatments",
        "Preparation of data and its quality control, alike across groups": "preprocessing",
        "The outcome: what, when, how assessed": "outcome reference_classes",
        "Who assessed it, and their qualification": "annotators",
        "Blinding of the outcome's assessment": "blinding",
        "Predictors: what goes in and how it is measured": "input modality",
        "Sample size": "sample_size",
        "Missing data": "missing_data",
    }) + _topics("Methods: analysis", {
        "How data were used: parts, resampling": "partition",
        "How predictors are handled: scaling, transformation": "preprocessing spacing",
        "Type of model, why, and all steps of building it": "network training",
        "How hyperparameters were chosen": "selection training",
        "Heterogeneity between clusters such as sites": "site_variation sites",
        "Measures of performance: discrimination, calibration, utility": "performance calibration",
        "Recalibration or updating": "calibration",
        "How predictions are computed for testing": "statistics evaluation_inputs",
        "Class imbalance: how handled, and what it did to calibration": "imbalance classes",
        "Fairness: what was done": "fairness subgroups",
        "Output: probabilities, classes, thresholds": "output threshold",
        "How training and test data differ": "shift external",
        "Ethical approval": "ethics consent",
    }) + _topics("Open science and involvement", {
        "Funding": "funding",
        "Conflicts of interest": "conflicts",
        "Protocol": "protocol",
        "Registration": "registration",
        "Data": "data_availability data_licence",
        "Code": "availability reproducibility",
        "Patients and the public: involved or not": "patient_involvement",
    }) + _topics("Results", {
        "Flow and characteristics of participants": "participants demographics",
        "Participants and events in each analysis": "participants classes",
        "The whole model, so that others can use it": "weights network",
        "Performance with intervals": "performance",
        "Performance in key subgroups": "subgroups",
        "Heterogeneity of performance between clusters": "site_variation external",
        "Results of any updating": "calibration",
    }) + _topics("Discussion", {
        "Interpretation, fairness included": "interpretation",
        "Limits": "limitations",
        "What users need: input quality, expertise, missing input": "limitations users",
        "Next steps and generalisability": "implications",
    }),
)  # fmt: skip

CHECKLISTS = (CLAIM, STARD_AI, TRIPOD_AI)

#: Sections of the model card and the facts that they show.
CARD = {
    "What it is": ("title", "task", "description", "version", "authors", "licence"),
    "Intended use": ("intended_use", "users", "background", "objectives"),
    "Data and consent": (
        "data_source", "data_licence", "participants", "demographics", "sites", "classes", "ethics",
        "consent", "deidentification",
    ),
    "Reference standard": ("reference_classes", "annotators", "annotation_tool"),
    "Input and preprocessing": ("modality", "body_part", "input", "spacing", "preprocessing"),
    "Model": ("network", "output", "labels", "postprocessing", "weights", "software"),
    "Training and selection": (
        "arms", "partition", "training", "augmentation", "initialisation", "selection",
    ),
    "Performance": ("performance", "disjoint", "external", "comparison", "statistics", "failures"),
    "Decisions and calibration": ("threshold", "calibration"),
    "Subgroups and fairness": ("subgroups", "fairness", "bias"),
    "Limits": ("limitations",),
    "After release": ("post_market_plan", "changelog", "reproducibility"),
    "Funding and conflicts": ("funding", "conflicts", "registration", "protocol"),
}  # fmt: skip

#: Every key that an item asks for.
KEYS = frozenset(
    {key for listed in CHECKLISTS for topic in listed.topics for key in topic.keys}
    | {key for keys in CARD.values() for key in keys}
)
