"use strict";
// Tables that sort and filter, and the dialog that shows a case. No text enters as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (cell === undefined) return "";
    if (cell.dataset.v === undefined) return cell.textContent;
    return cell.dataset.v === "" ? NaN : Number(cell.dataset.v);
  };

  // What has no value stays at the end, whichever way the table is sorted.
  const compare = (a, b, sign) => {
    const [noA, noB] = [a, b].map((v) => v === "" || Number.isNaN(v));
    if (noA || noB) return noA - noB;
    if (typeof a === "number" && typeof b === "number") return a === b ? 0 : sign * (a < b ? -1 : 1);
    return sign * String(a).localeCompare(String(b), "en", { numeric: true });
  };

  const sortBy = (table, column) => {
    const head = $$("thead th", table);
    const rising = head[column].getAttribute("aria-sort") !== "ascending";
    head.forEach((th, k) => th.setAttribute("aria-sort", k === column ? (rising ? "ascending" : "descending") : "none"));
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, at) => [valueOf(row, column), at, row]);
    rows.sort((a, b) => compare(a[0], b[0], rising ? 1 : -1) || a[1] - b[1]);
    body.append(...rows.map((entry) => entry[2]));
  };

  // Words must occur in the row; "dice<0.8" compares the column whose name starts so.
  const parse = (text, names) => text.trim().split(/\s+/).filter(Boolean).map((word) => {
    const found = /^([^<>=]+)(<=|>=|<|>|=)(-?[\d.]+|inf)$/i.exec(word);
    const column = found ? names.findIndex((name) => name.startsWith(found[1].toLowerCase())) : -1;
    if (column < 0) return (row) => row.textContent.toLowerCase().includes(word.toLowerCase());
    const limit = found[3].toLowerCase() === "inf" ? Infinity : Number(found[3]);
    const test = { "<": (v) => v < limit, ">": (v) => v > limit, "=": (v) => v === limit,
                   "<=": (v) => v <= limit, ">=": (v) => v >= limit }[found[2]];
    return (row) => test(Number(valueOf(row, column)));
  });

  const setUpTable = (box) => {
    const table = $("table", box);
    const head = $$("thead th", table);
    const names = head.map((th) => th.textContent.trim().toLowerCase().replace(/\s+/g, "_"));
    head.forEach((th, column) => $("button", th)?.addEventListener("click", () => sortBy(table, column)));
    const [search, choice, count] = [$("input[type=search]", box), $$("select", box), $(".count", box)];
    if (!search) return;
    const apply = () => {
      const tests = parse(search.value, names);
      const wanted = choice.filter((one) => one.value !== "").map((one) => [Number(one.dataset.column), one.value]);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        row.hidden = !(tests.every((test) => test(row)) &&
                       wanted.every(([column, text]) => row.cells[column].textContent === text));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
    };
    search.addEventListener("input", apply);
    choice.forEach((one) => one.addEventListener("change", apply));
    apply();
  };

  $$(".sortable").forEach(setUpTable);

  // ---- one case ----
  const dialog = $("#case");
  const state = { at: "", opener: null };
  const viewer = typeof medvolViewer === "undefined" ? null : medvolViewer;

  const text = (tag, content, name) => {
    const made = document.createElement(tag);
    made.textContent = content;
    if (name) made.className = name;
    return made;
  };

  // The numbers beside the picture are the rows of the case table, so they cannot differ from it.
  const numbersOf = (at) => {
    const rows = $$(`tr[data-case="${at}"]`);
    const table = document.createElement("table");
    if (!rows.length) return table;
    const head = $$("thead th", rows[0].closest("table"));
    const skip = Number(rows[0].dataset.skip ?? 1);
    // A line per column, a column per structure: it fits beside the picture.
    head.slice(skip).forEach((th, k) => {
      const cells = rows.map((row) => row.cells[k + skip].textContent.trim());
      if (!cells.some(Boolean)) return;
      const line = table.insertRow();
      line.append(text("th", th.textContent.trim()), ...cells.map((cell) => text("td", cell)));
    });
    return table;
  };

  const show = async (at) => {
    state.at = at;
    delete dialog.dataset.shown;
    const one = data.cases[at];
    $("#case-name").textContent = one.name;
    $("#case-run").textContent = one.run;
    $("#case-note").textContent = one.note;
    $("#case-numbers").replaceChildren(numbersOf(at));
    const has = Boolean(viewer && one.parts);
    dialog.classList.toggle("flat", !has);
    $("#case-status").textContent = has ? "loading" : "";
    if (!has) return;
    const pick = $("#case-label");
    pick.replaceChildren(new Option("all structures", ""), ...one.labels.map((name, k) => new Option(name, String(k + 1))));
    pick.parentElement.hidden = one.labels.length < 2;
    for (const role of ["image", "ref", "pred"]) {
      $(`#show-${role}`).parentElement.hidden = !one.parts[role];
    }
    try {
      if (!(await viewer.load($("#canvas"), one.parts, one.labels.length))) return;
      look();
      $("#case-status").textContent = "";
      dialog.dataset.shown = at;
    } catch (error) {
      $("#case-status").textContent = `The 3D view needs WebGL 2: ${error.message}`;
    }
  };

  const look = () => viewer?.look({
    image: $("#show-image").checked, ref: $("#show-ref").checked, pred: $("#show-pred").checked,
    opacity: Number($("#opacity").value) / 100, view: $("#view").value,
    label: Number($("#case-label").value || 0), outline: $("#outline").checked,
  });

  const open = (at, opener) => {
    state.opener = opener;
    if (!dialog.open) dialog.showModal();
    show(at);
  };

  // The next case in the order of the table as it is sorted and filtered now.
  const step = (by) => {
    const order = [...new Set($$("tr[data-case]").filter((row) => !row.hidden).map((row) => row.dataset.case))];
    if (!order.length) return;
    const here = order.indexOf(state.at);
    show(order[(here + by + order.length) % order.length]);
  };

  document.addEventListener("click", (event) => {
    const opener = event.target.closest?.("[data-open]");
    if (opener) open(opener.dataset.open, opener);
  });
  if (!dialog) return;
  $("#previous").addEventListener("click", () => step(-1));
  $("#next").addEventListener("click", () => step(1));
  $("#close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => state.opener?.focus());
  $$("#controls input, #controls select").forEach((one) => one.addEventListener("input", look));
  dialog.addEventListener("keydown", (event) => {
    const inField = event.target.tagName === "INPUT" && event.target.type !== "checkbox";
    const toggles = { 1: "image", 2: "ref", 3: "pred" };
    // Letters and arrows in a list choose there.
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    if (event.key in toggles) $(`#show-${toggles[event.key]}`).click();
    else if (event.key === "o") $("#outline").click();
    else if (event.key === "n") step(1);
    else if (event.key === "p") step(-1);
    else if (event.key === "v") {
      const view = $("#view");
      view.selectedIndex = (view.selectedIndex + 1) % view.options.length;
      look();
    } else if (!inField && viewer?.move(event.key)) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || dialog.open || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
    $("input[type=search]")?.focus();
    event.preventDefault();
  });
})();
