// Notices on nodes: what nodes/native/notices.py tells about a run, with a button that sets the
// values that would be right. A notice is a DOM widget, which both canvases show and no workflow saves.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { allNodes, isLinked, nodesOfId, register, rootGraph, sourceOf, widgetOf } from "./mcm_graph.js";

const WIDGET = "mcm_notice";
const MARGIN = 10; // of a DOM widget on the classic canvas
const MIN_WIDTH = 280; // of a node while it shows a notice: narrower, the text would be a column
const LOOK_MS = 400;
const SETTERS = ["SIGMAS", "SAMPLER", "GUIDER"]; // sockets of nodes that hold a custom sampler's values
const STYLE = `
.lg-node-widgets > .mcm-notices { grid-column: 1 / -1; }
.mcm-notices { display: flex; flex-direction: column; width: 100%; pointer-events: auto; }
.lg-node:has(.mcm-notice) { z-index: 1000 !important; }
.mcm-notices > div { display: flex; flex-direction: column; gap: 6px; max-height: 150px; overflow-y: auto; }
.mcm-notice { position: relative; box-sizing: border-box; padding: 8px 26px 8px 10px; border-radius: 6px;
  border-left: 4px solid #e5a50a; background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd);
  font: 12px/1.4 Inter, Arial, sans-serif; text-align: left; white-space: pre-line;
  overflow-wrap: anywhere; user-select: text; }
.mcm-notice button { cursor: pointer; font: inherit; color: inherit; }
.mcm-notice .mcm-use { display: block; margin-top: 6px; padding: 3px 10px; border-radius: 4px;
  border: 1px solid #e5a50a; background: transparent; }
.mcm-notice .mcm-use:hover, .mcm-notice .mcm-use:focus-visible { background: #e5a50a; color: #111; }
.mcm-notice .mcm-close { position: absolute; top: 2px; right: 4px; width: 22px; height: 22px; padding: 0;
  border: 0; background: transparent; font-size: 15px; line-height: 1; }
`;

const kept = new Map(); // workflow id -> execution id -> notices, also of a workflow that is not open
const views = new WeakMap(); // node -> { element, widget, size, height }
const alive = new Map(); // element -> its node

function workflowId() {
  return String(rootGraph()?.id ?? "");
}

function noticesOf(executionId, workflow = workflowId()) {
  if (!kept.has(workflow)) kept.set(workflow, new Map());
  const nodes = kept.get(workflow);
  if (!nodes.has(executionId)) nodes.set(executionId, []);
  return nodes.get(executionId);
}

/** Show `text` on a node until `forget` or a click takes it away. `kind` "run" ends with a later run. */
export function notify(executionId, text, { settings = {}, kind = "run", workflow = workflowId() } = {}) {
  const notices = noticesOf(executionId, workflow);
  const same = notices.find((each) => each.text === text);
  if (same) Object.assign(same, { stale: false, settings, values: undefined, told: undefined });
  else notices.push({ text, settings, kind, stale: false });
  if (workflow === workflowId()) refresh(executionId);
}

/** Take away the notices of a node for which `wanted` is true. */
export function forget(executionId, wanted) {
  const notices = noticesOf(executionId);
  const left = notices.filter((each) => !wanted(each));
  if (left.length === notices.length) return;
  notices.splice(0, notices.length, ...left);
  refresh(executionId);
}

/** A notice belongs to the values it was told about: undo and a fresh copy of a file may have others. */
function stillTrue(notice, node) {
  const saved = (node.widgets ?? []).filter((each) => each.serialize !== false);
  const values = JSON.stringify(saved.map((each) => each.value));
  notice.values ??= values;
  return notice.values === values;
}

/** Whether somebody has changed one of the values that the notice would set. */
function corrected(notice, node) {
  const now = placesOf(node, notice.settings).map(
    (each) => [each.name, widgetOf(each.node, each.name).value],
  );
  const told = (notice.told ??= Object.fromEntries(now));
  return now.some(([name, value]) => name in told && told[name] !== value);
}

/** What no event tells: values set by hand, and canvases that drop a node's elements when they draw
    it anew, as Nodes 2.0 does after an undo. */
function look() {
  for (const [executionId, notices] of kept.get(workflowId()) ?? []) {
    const nodes = notices.length ? nodesOfId(executionId) : [];
    if (!nodes.length) continue;
    forget(executionId, (each) => corrected(each, nodes.at(-1)));
    for (const node of new Set([nodes.at(-1), nodes[0]])) {
      const view = views.get(node);
      const outer = view?.widget.element;
      if (outer && !outer.isConnected) mount(node, outer);
    }
  }
}

/** Draw the notices of a node: on it, and on the outermost subgraph that holds it. */
function refresh(executionId) {
  const nodes = nodesOfId(executionId);
  if (!nodes.length) return;
  const inner = nodes.at(-1);
  const notices = noticesOf(executionId).filter((each) => stillTrue(each, inner));
  for (const node of new Set([inner, nodes[0]])) {
    if (!notices.length) hide(node, executionId);
    else show(node, executionId, inner, notices);
  }
}

function show(node, executionId, inner, notices) {
  const view = views.get(node) ?? addView(node);
  const cards = notices.map((notice) => card(notice, inner, executionId));
  const block = view.blocks.get(executionId) ?? document.createElement("div");
  block.replaceChildren(...cards);
  view.blocks.set(executionId, block);
  view.element.append(block);
  fit(node, view);
}

function hide(node, executionId) {
  const view = views.get(node);
  if (!view?.blocks.has(executionId)) return;
  view.blocks.get(executionId).remove();
  view.blocks.delete(executionId);
  if (view.blocks.size) fit(node, view);
  else removeView(node, view);
}

function card(notice, inner, executionId) {
  const element = document.createElement("div");
  element.className = "mcm-notice";
  element.setAttribute("role", "status");
  element.append(notice.text);
  const places = placesOf(inner, notice.settings);
  if (places.some((each) => !each.linked)) {
    const use = button("Use these settings", "mcm-use", () => {
      const left = useSettings(places);
      forget(executionId, (each) => each === notice);
      if (left) notify(executionId, left, { kind: notice.kind });
    });
    use.title = places.map((each) => `${each.name}: ${each.value}`).join("\n");
    element.append(use);
  }
  const close = button("×", "mcm-close", () => forget(executionId, (each) => each === notice));
  close.setAttribute("aria-label", "Close");
  element.append(close);
  return element;
}

function button(label, name, click) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = name;
  element.textContent = label;
  element.addEventListener("pointerdown", (event) => event.stopPropagation());
  element.addEventListener("click", (event) => {
    event.stopPropagation();
    click();
  });
  return element;
}

/** Where each setting's widget is: on the node, or on the nodes that make its sigmas and sampler. */
function placesOf(node, settings) {
  const nodes = [node];
  for (const [slot, input] of (node.inputs ?? []).entries()) {
    const source = SETTERS.includes(input.type) ? sourceOf(node, slot) : null;
    if (source) nodes.push(source);
  }
  return Object.entries(settings).flatMap(([name, value]) => {
    const owner = nodes.find((each) => widgetOf(each, name));
    return owner ? [{ name, value, node: owner, linked: isLinked(owner, name) }] : [];
  });
}

/** Set what can be set; a sentence about what comes over links, or "". */
function useSettings(places) {
  for (const { name, value, node } of places.filter((each) => !each.linked)) {
    const widget = widgetOf(node, name);
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
  }
  app.canvas?.setDirty?.(true, true);
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  const linked = places.filter((each) => each.linked);
  const told = linked.map((each) => `${each.name} to ${each.value}`).join(", ");
  return told && `Connected to other nodes; set there: ${told}.`;
}

function addView(node) {
  const element = document.createElement("div");
  element.className = "mcm-notices";
  const inside = document.createElement("div");
  element.append(inside);
  const view = { element: inside, blocks: new Map(), height: 0, size: [...node.size] };
  view.widget = node.addDOMWidget(WIDGET, WIDGET, element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    surfaces: { canvas: "shown", vueNode: "shown", panel: "never" },
    getMinHeight: () => view.height,
    getMaxHeight: () => view.height,
  });
  view.widget.serialize = false;
  view.onSerialize = node.onSerialize;
  node.onSerialize = function (data) {
    view.onSerialize?.call(this, data);
    const width = data.size[0] === MIN_WIDTH ? view.size[0] : data.size[0];
    data.size = [width, Math.min(data.size[1], view.size[1])]; // what is saved has no notice
    const shown = data.properties?.proxyWidgets; // a subgraph's list of its widgets
    if (Array.isArray(shown))
      data.properties.proxyWidgets = shown.filter((each) => each[1] !== WIDGET);
  };
  if (node.size[0] < MIN_WIDTH) node.setSize([MIN_WIDTH, node.size[1]]);
  alive.set(element, node);
  views.set(node, view);
  view.observer = new ResizeObserver(() => fit(node, view));
  view.observer.observe(inside);
  requestAnimationFrame(() => requestAnimationFrame(() => mount(node, element)));
  return view;
}

/** Frontend 1.32's Nodes 2.0 no longer sees new widgets once a value of the node was changed. */
function mount(node, element) {
  if (element.isConnected || !alive.has(element)) return;
  document.querySelector(`.lg-node[data-node-id="${node.id}"] .lg-node-widgets`)?.append(element);
}

/** Give the widget the height of its text; it changes with the width of the node. */
function fit(node, view) {
  const height = view.element.offsetHeight + 2 * MARGIN;
  if (!view.element.offsetHeight || height === view.height) return;
  view.height = height;
  node.setDirtyCanvas?.(true, true);
}

function removeView(node, view) {
  view.observer.disconnect();
  views.delete(node);
  node.onSerialize = view.onSerialize;
  node.removeWidget(view.widget);
  view.widget.element.remove();
  alive.delete(view.widget.element);
  const width = node.size[0] === MIN_WIDTH ? view.size[0] : node.size[0];
  node.setSize([width, Math.min(node.size[1], view.size[1])]);
  node.setDirtyCanvas?.(true, true);
}

let running = null; // execution id of the node that is being executed

/** A node that has ended keeps only what it told this time. */
function leave(next) {
  if (running !== null && running !== next) forget(running, (each) => each.stale);
  running = next;
}

api.addEventListener("executing", ({ detail }) => {
  const id = detail == null ? null : String(detail);
  if (id === running) return;
  leave(id);
  if (id === null) return;
  for (const each of noticesOf(id)) each.stale = each.kind === "run";
});
for (const end of ["execution_success", "execution_error", "execution_interrupted"])
  api.addEventListener(end, () => leave(null));
api.addEventListener("mcm.notice", ({ detail }) => {
  notify(detail.node, detail.text, {
    settings: detail.settings,
    workflow: detail.workflow || workflowId(),
  });
});

register({
  name: "mcm.notices",
  setup() {
    const style = document.createElement("style");
    style.textContent = STYLE;
    document.head.append(style);
    setInterval(look, LOOK_MS);
  },
  afterConfigureGraph() {
    const nodes = new Set(allNodes());
    for (const [element, node] of alive) {
      if (nodes.has(node)) continue; // else of the workflow that was open before
      element.remove();
      alive.delete(element);
    }
    for (const executionId of kept.get(workflowId())?.keys() ?? []) refresh(executionId);
  },
});
