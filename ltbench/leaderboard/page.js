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

  function unfold(table, button) {
    const row = table.row(button.closest("tr"));
    const open = !row.child.isShown();
    if (open) {
      const detail = by("detail-" + button.dataset.detail).content.cloneNode(true).firstElementChild;
      all("[data-notes]", detail).forEach((list) =>
        list.dataset.notes.split(" ").forEach((mark) => {
          const item = by("note-" + mark).cloneNode(true);
          item.removeAttribute("id");
          list.append(item);
        })
      );
      row.child(detail, "child").show();
    } else row.child.hide();
    button.setAttribute("aria-expanded", String(open));
  }

  function filter(table, form) {
    const wanted = all("select", form).filter((s) => s.value).map((s) => [s.dataset.facet, s.value]);
    all("select", form).forEach((s) => s.classList.toggle("set", s.value !== ""));
    table.search.fixed("facets", (text, data, index) => {
      const has = table.row(index).node().dataset;
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
    show(panel ? by("tab-" + panel.id) : tabs[0]);
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
