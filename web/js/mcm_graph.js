// What the other scripts share: finding nodes and walking along links, in subgraphs too.

import { app } from "../../../scripts/app.js";

const SUBGRAPH_INPUT = -10; // id of the node inside a subgraph that stands for its inputs

export function rootGraph() {
  return app.rootGraph ?? app.graph;
}

/** Register an extension; a second copy of the pack must not fail with the same name. */
export function register(extension) {
  if (!app.extensions?.some((each) => each.name === extension.name)) app.registerExtension(extension);
}

function* graphs(graph, seen = new Set()) {
  if (!graph || seen.has(graph)) return;
  seen.add(graph);
  yield graph;
  for (const node of graph.nodes ?? []) if (node.subgraph) yield* graphs(node.subgraph, seen);
}

/** Every node of the open workflow, those inside subgraphs once each. */
export function* allNodes() {
  for (const graph of graphs(rootGraph())) yield* graph.nodes ?? [];
}

/** The nodes from the canvas down to the one that an execution id such as "5:3" names. */
export function nodesOfId(executionId) {
  const found = [];
  let graph = rootGraph();
  for (const part of String(executionId).split(":")) {
    const node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    if (!node) return [];
    found.push(node);
    graph = node.subgraph;
  }
  return found;
}

export function widgetOf(node, name) {
  return node.widgets?.find((each) => each.name === name);
}

/** Whether a widget's value comes over a link instead. */
export function isLinked(node, name) {
  const input = node.inputs?.find((each) => (each.widget?.name ?? each.name) === name);
  return input?.link != null;
}

/** The link of an input, whatever the frontend keeps links in. */
function linkOf(graph, id) {
  if (id == null) return null;
  return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id] ?? null;
}

function hostOf(subgraph) {
  for (const node of allNodes()) if (node.subgraph === subgraph) return node;
  return null;
}

/** The node that gives input number `slot` of `node` its value, through subgraphs; null without. */
export function sourceOf(node, slot) {
  const link = node.isVirtualNode
    ? node.getInputLink?.(slot)
    : linkOf(node.graph, node.inputs?.[slot]?.link);
  if (!link) return null;
  const graph = node.graph;
  if (link.origin_id === SUBGRAPH_INPUT) {
    const host = hostOf(graph);
    return host ? sourceOf(host, link.origin_slot) : null;
  }
  const origin = graph.getNodeById(link.origin_id);
  if (!origin?.subgraph) return origin ?? null;
  const inner = origin.subgraph.outputNode?.slots?.[link.origin_slot];
  const within = linkOf(origin.subgraph, inner?.linkIds?.[0]);
  return within ? origin.subgraph.getNodeById(within.origin_id) : null;
}
