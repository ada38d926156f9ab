// The animated preview of a sampler (nodes/native/previews.py) goes away when sampling has ended. The
// frontend would leave its last image as a still, which covers what lies below the node.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { nodesOfId } from "./mcm_graph.js";

const IMAGE_WIDGET = "$$canvas-image-preview"; // the classic canvas's own
const heights = new Map(); // execution id -> height of the node before its preview

/** The frontend's store of previews. No function for extensions takes one away. */
function previewStore() {
  return app.extensionManager?._p?._s?.get("nodeOutput");
}

function hasImage(node) {
  return Boolean(node?.widgets?.some((each) => each.name === IMAGE_WIDGET));
}

/** A preview arrives: remember how high the node was, before the classic canvas makes room. */
function begin(executionId) {
  const node = nodesOfId(executionId).at(-1);
  if (node && !hasImage(node)) heights.set(executionId, node.size[1]);
}

function end(executionId) {
  const parts = executionId.split(":");
  const nodes = nodesOfId(executionId);
  for (const [depth, node] of nodes.entries()) {
    const id = parts.slice(0, depth + 1).join(":");
    previewStore()?.revokePreviewsByExecutionId?.(id);
    clearCanvas(node, heights.get(id));
    heights.delete(id);
  }
}

/** Take the image off the classic canvas, also one that is still being decoded. */
function clearCanvas(node, height) {
  const shown = previewStore()?.getNodePreviews?.(node) ?? node.preview;
  node.preview = shown; // as if drawn already, else the next drawing would show it
  Object.defineProperty(node, "imgs", {
    configurable: true,
    get: () => undefined,
    set(images) {
      if (node.preview === shown && node.images === undefined) return; // of the run that has ended
      Object.defineProperty(node, "imgs", { configurable: true, writable: true, value: images });
    },
  });
  const widget = node.widgets?.find((each) => each.name === IMAGE_WIDGET);
  if (widget) node.removeWidget(widget);
  if (widget && height && height < node.size[1]) node.setSize([node.size[0], height]);
  node.setDirtyCanvas?.(true, true);
}

api.addEventListener("b_preview_with_metadata", ({ detail }) => begin(String(detail.displayNodeId)));
api.addEventListener("mcm.preview_end", ({ detail }) => end(detail.node));
