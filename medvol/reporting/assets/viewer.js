"use strict";
// One NiiVue canvas for image, reference (sky blue) and prediction (orange), the Okabe-Ito pair
// that stays apart on black for every kind of colour vision.
const medvolViewer = (() => {
  const COLOURS = { ref: [86, 180, 233], pred: [230, 159, 0] };
  const VIEWS = { axial: 0, coronal: 1, sagittal: 2, slices: 3, render: 4 };
  const STEPS = {
    ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowDown: [0, -1, 0], ArrowUp: [0, 1, 0],
    PageDown: [0, 0, -1], PageUp: [0, 0, 1],
  };
  let nv = null;
  let started = null;
  let turn = 0;
  let roles = [];
  let count = 0;

  const start = async (canvas) => {
    nv = new niivue.Niivue({
      backColor: [0.07, 0.07, 0.08, 1], crosshairColor: [0.94, 0.89, 0.26, 0.8], crosshairWidth: 0.35,
      dragAndDropEnabled: false, isOrientCube: false, loadingText: "", logLevel: "silent",
      multiplanarShowRender: 2, isNearestInterpolation: false, show3Dcrosshair: true,
    });
    await nv.attachToCanvas(canvas, false);
  };

  // A colour table that shows one structure, or all (0), in the role's colour.
  const table = (role, label) => {
    const values = Array.from({ length: count + 1 }, (_, k) => k);
    const [r, g, b] = COLOURS[role];
    return {
      I: values, R: values.map(() => r), G: values.map(() => g), B: values.map(() => b),
      A: values.map((k) => (k > 0 && (label === 0 || k === label) ? 255 : 0)),
      labels: values.map(() => ""),
    };
  };

  // False where another case was asked for meanwhile: its volumes must not be replaced by these.
  const load = async (canvas, parts, labels) => {
    const mine = ++turn;
    await (started ??= start(canvas));
    const wanted = ["image", "ref", "pred"].filter((role) => parts[role]);
    const made = [];
    for (const role of wanted) {
      const base64 = document.getElementById(parts[role]).textContent.trim();
      made.push(await niivue.NVImage.loadFromBase64({ base64, name: `${role}.nii.gz`, colormap: "gray" }));
    }
    if (mine !== turn) return false;
    [count, roles] = [labels, wanted];
    while (nv.volumes.length) nv.removeVolume(nv.volumes[nv.volumes.length - 1]);
    for (const volume of made) nv.addVolume(volume);
    return true;
  };

  const look = (wish) => {
    if (!nv || !nv.volumes.length) return;
    roles.forEach((role, k) => {
      const volume = nv.volumes[k];
      if (role !== "image") volume.setColormapLabel(table(role, wish.label));
      volume.opacity = wish[role] ? (role === "image" ? 1 : wish.opacity) : 0;
    });
    nv.setAtlasOutline(wish.outline ? 1 : 0);
    nv.setSliceType(VIEWS[wish.view]);
    nv.updateGLVolume();
  };

  const move = (key) => {
    if (!nv || !(key in STEPS)) return false;
    nv.moveCrosshairInVox(...STEPS[key]);
    return true;
  };

  return { load, look, move, get instance() { return nv; } };
})();
