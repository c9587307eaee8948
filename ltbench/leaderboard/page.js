function (DataTable) {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const by = (id) => document.getElementById(id);

  // Numbers of which some are missing: these come last, whichever way the others are sorted.
  const missingLast = (direction) => (a, b) => {
    if (a === b) return 0;
    if (a === "") return 1;
    if (b === "") return -1;
    return direction * (a - b);
  };
  DataTable.type("results", {
    order: {
      pre: (text) => (text === "" || isNaN(text) ? "" : Number(text)),
      asc: missingLast(1),
      desc: missingLast(-1),
    },
  });

  // Details come as data; texts are put in as text, so that no name in them can be markup.
  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    Object.entries(attributes || {}).forEach(([name, value]) => made.setAttribute(name, value));
    made.append(...children.flat(Infinity).filter((child) => child !== ""));
    return made;
  }
  const code = (text, title) => element("code", title ? { title } : {}, text);
  const anchor = (at) =>
    at.link ? element("a", { href: at.link, rel: "noopener noreferrer" }, at.text) : at.text;
  const command = (text) =>
    element("div", { class: "command" }, code(text), element("button", { type: "button", class: "copy" }, "Copy"));
  const list = (pairs) =>
    element("dl", {}, pairs.filter(([, value]) => value !== "" && value !== undefined)
      .flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  const joined = (parts, between) => parts.flatMap((part, at) => (at ? [between, part] : [part]));

  function oursDetail(row) {
    const cell = (text) => element("td", {}, text);
    const number = (text) => element("td", { class: "number" }, text);
    const seed = (s) =>
      element("tr", {}, cell(String(s.seed)), s.values.map((v) => number(v || "–")),
        cell(element("span", { class: "badge " + s.status }, s.status)),
        cell(s.weights ? [code(s.weights.slice(0, 12), "SHA-256 " + s.weights), ", " + s.size] : "none"),
        cell(s.verified || "not yet"),
        element("td", {}, code(s.run.slice(0, 12), s.run), ", " + s.date + (s.by ? ", by " + s.by : ""),
          s.notes ? [element("br"), s.notes] : ""));
    const bars = (row.classes.count || []).map((count, at) => {
      const recall = row.classes.recall[at].toFixed(1);
      const bar = element("i", { class: row.classes.group[at], title: `${count} training images: ${recall} %` });
      bar.style.height = recall + "%";
      return bar;
    });
    const heads = ["seed", "overall", "many", "medium", "few", "ECE", "status", "checkpoint", "verification", "run"];
    return [
      element("div", { class: "columns" },
        element("div", {}, element("h3", {}, "Reproduce"), command(row.command),
          list([
            ["recipe", [row.recipe + ", digest ", code(row.digest)]],
            ["changed", row.changed],
            ["setting", row.setting],
            ["track", row.track],
            ["backbone", row.backbone + (row.start ? ", from " + row.start : ", trained from scratch")],
            ["code", row.code],
            ["paper", row.paper ? anchor(row.paper) : ""],
          ])),
        element("div", {}, element("h3", {}, "Hardware"),
          list([
            ...row.hardware,
            ["training data", code(row.data[0].slice(0, 16), row.data[0])],
            ["test data", code(row.data[1].slice(0, 16), row.data[1])],
          ]))),
      bars.length ? [element("h3", {}, "Recall by class, largest class first"),
        element("div", { class: "classes", role: "img", "aria-label": "Recall in percent by class: " + row.classes.recall.map(Math.round).join(", ") }, bars)] : "",
      element("h3", {}, "Seeds, checkpoints, verification"),
      element("div", { class: "scroll" },
        element("table", { class: "seeds" },
          element("thead", {}, element("tr", {}, heads.map((head, at) => element("th", at > 0 && at < 6 ? { class: "number" } : {}, head)))),
          element("tbody", {}, row.seeds.map(seed)))),
      row.seeds.filter((s) => s.load).map((s) => command(s.load)),
      element("details", {}, element("summary", {}, "All values of the recipe"), element("pre", {}, JSON.stringify(row.resolved, null, 2))),
    ];
  }

  function citedDetail(row) {
    const notes = row.notes.map((mark) => {
      const item = by("note-" + mark).cloneNode(true);
      item.removeAttribute("id");
      return item;
    });
    return [
      list([
        ["printed in", joined(row.sources.map(anchor), "; ")],
        ["setting", row.setting],
        ["remark", row.note],
        ["paper", row.paper ? anchor(row.paper) : ""],
        ...row.facts.filter(([, value]) => value !== "unknown").map(([name, value, origin]) => [name, value + ", " + origin]),
        ["not stated", row.facts.filter(([, value]) => value === "unknown").map(([name]) => name).join(", ")],
        ["status", "printed by others; no record, no weights of ours"],
        ["recipe", row.commands.map(command)],
      ].filter(([, value]) => !Array.isArray(value) || value.length)),
      notes.length ? element("ol", { class: "notes" }, notes) : "",
    ];
  }

  const parsed = {};
  function detailOf(panel, ident) {
    const source = () => JSON.parse(by("details-" + panel.id).content.textContent);
    parsed[panel.id] = parsed[panel.id] || source(); // when first asked for
    const row = parsed[panel.id][ident];
    return element("div", { class: "detail" }, (row.command ? oursDetail(row) : citedDetail(row)).flat());
  }

  function unfold(table, button) {
    const row = table.row(button.closest("tr"));
    const open = !row.child.isShown();
    if (open) row.child(detailOf(button.closest(".panel"), button.dataset.detail), "child").show();
    else row.child.hide();
    button.setAttribute("aria-expanded", String(open));
  }

  function filter(table, form) {
    const wanted = all("select[data-facet]", form).filter((s) => s.value).map((s) => [s.dataset.facet, s.value]);
    const most = Number(form.querySelector("select[data-most]")?.value) || Infinity;
    all("select", form).forEach((s) => s.classList.toggle("set", s.value !== ""));
    table.search.fixed("facets", (text, data, index) => {
      const has = table.row(index).node().dataset;
      if (most < Infinity && !(Number(has.longest) <= most)) return false; // unknown ones too
      return wanted.every(([facet, value]) => has[facet] === value);
    });
    table.search(form.querySelector("input").value).draw();
  }

  function prepare(panel) {
    const element = panel.querySelector("table.board");
    if (DataTable.isDataTable(element)) return;
    const heads = all("thead th", element);
    const group = "group" in element.dataset ? Number(element.dataset.group) : null;
    const columns = heads.map((head) => ({
      orderable: !("plain" in head.dataset),
      searchable: !("plain" in head.dataset),
      visible: !("hide" in head.dataset),
      type: head.classList.contains("number") ? "results" : undefined,
      orderSequence: head.classList.contains("number") && head.textContent !== "ECE" ? ["desc", "asc"] : ["asc", "desc"],
      className: head.className,
    }));
    // The library announces the direction of the fixed order by track; say that of the chosen column.
    const announce = () =>
      heads.forEach((head) => {
        const has = (direction) => head.classList.contains("dt-ordering-" + direction);
        if (has("asc")) head.setAttribute("aria-sort", "ascending");
        else if (has("desc")) head.setAttribute("aria-sort", "descending");
      });
    const table = new DataTable(element, {
      columns,
      autoWidth: false,
      order: group === null ? [] : [[heads.findIndex((h) => h.textContent === "Overall"), "desc"]],
      orderFixed: group === null ? undefined : { pre: [[group, "asc"]] },
      rowGroup: group === null ? false : { dataSrc: (row) => row[group].display ?? row[group] },
      pageLength: 25,
      lengthMenu: [25, 50, 100, { label: "all", value: -1 }],
      drawCallback: announce,
      layout: { topStart: null, topEnd: null, bottomStart: ["info", "pageLength"], bottomEnd: { paging: { buttons: 5, firstLast: false } } },
      language: {
        info: "_START_ to _END_ of _TOTAL_ rows",
        infoEmpty: "no rows",
        infoFiltered: "(of _MAX_)",
        lengthMenu: "_MENU_ a page",
        zeroRecords: "No row fits these filters.",
      },
    });
    all(".mark", element).forEach((mark) => (mark.title = by(mark.hash.slice(1)).textContent));
    const form = panel.querySelector("form");
    const more = form.querySelector(".more");
    more.addEventListener("click", () => {
      more.setAttribute("aria-expanded", String(form.classList.toggle("open")));
      more.textContent = form.classList.contains("open") ? "Fewer filters" : "More filters";
    });
    form.addEventListener("input", () => filter(table, form));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      all("select", form).forEach((s) => (s.value = ""));
      form.querySelector("input").value = "";
      filter(table, form);
    });
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-detail]");
      const row = event.target.closest("tr[data-status]");
      if (button) unfold(table, button);
      else if (row && !event.target.closest("a, button") && !String(getSelection())) {
        const own = row.querySelector("button[data-detail]");
        if (own) unfold(table, own);
      }
    });
    filter(table, form);
    panel.querySelector(".table").classList.add("ready");
  }

  const tabs = all("[role=tab]");
  function show(tab, focus = false) {
    tabs.forEach((other) => {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      by(other.getAttribute("aria-controls")).classList.toggle("shown", chosen);
    });
    if (focus) tab.focus();
    tab.parentElement.scrollLeft = tab.offsetLeft - (tab.parentElement.clientWidth - tab.offsetWidth) / 2;
    prepare(by(tab.getAttribute("aria-controls")));
  }
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => {
      history.replaceState(null, "", "#" + tab.getAttribute("aria-controls"));
      show(tab);
    });
    tab.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = tabs[(steps[event.key] + tabs.length) % tabs.length];
      history.replaceState(null, "", "#" + next.getAttribute("aria-controls"));
      show(next, true);
    });
  });

  // An address may name a tab, or a footnote in the last one.
  function follow() {
    const id = location.hash.slice(1);
    const target = id && by(id);
    const panel = target && target.closest(".panel");
    show(by("tab-" + (panel || document.querySelector(".panel[data-first]")).id));
    if (panel && panel !== target) target.scrollIntoView({ block: "center" });
  }
  addEventListener("hashchange", follow);
  follow();

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no permission: ready for the keyboard
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
