// What a node reports, in a box of its own that stays on the node after the run.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const PREFIX = "SCDPO_";
const EVENT = "scdpo.text"; // while a node runs
const WIRING = "scdpo.wiring"; // what is wrong with a gate's wiring, when a run is asked for
const OUTPUT = "scdpo_text"; // of a finished node; ComfyUI keeps it with the node's images
const WIDGET = "scdpo_report";
const MOST_HEIGHT = 320; // pixels, beyond which the box scrolls
const MARGIN = 10; // ComfyUI's own round a box, pixels
const STYLE = {
  boxSizing: "border-box",
  width: "100%",
  height: "100%",
  margin: "0",
  padding: "6px 8px",
  overflow: "auto",
  whiteSpace: "pre-wrap",
  overflowWrap: "anywhere",
  font: "12px/1.45 system-ui, sans-serif",
  color: "var(--input-text, #ddd)",
  background: "var(--comfy-input-bg, #222)",
  border: "1px solid var(--border-color, #4e4e4e)",
  borderRadius: "6px",
  userSelect: "text",
};

/** The node of an id such as "7", or "12:7" for node 7 in subgraph node 12; undefined if another tab has it. */
function findNode(id) {
  const steps = String(id).split(":");
  const last = steps.pop();
  let graph = app.rootGraph ?? app.graph;
  for (const step of steps) graph = graph?.getNodeById(Number(step))?.subgraph;
  return graph?.getNodeById(Number(last)) ?? undefined;
}

/** Height that a text needs in a box of this width, pixels. */
function heightOf(text, width) {
  const probe = document.createElement("div");
  Object.assign(probe.style, STYLE, { position: "absolute", visibility: "hidden", height: "auto" });
  probe.style.width = `${Math.max(120, width)}px`;
  probe.textContent = text;
  document.body.append(probe);
  const height = probe.offsetHeight;
  probe.remove();
  return Math.min(MOST_HEIGHT, height);
}

function addBox(node) {
  const element = document.createElement("div");
  Object.assign(element.style, STYLE);
  // A text is selected and scrolled here, without moving the node or zooming the canvas.
  element.addEventListener("pointerdown", (event) => event.stopPropagation());
  element.addEventListener("wheel", (event) => {
    if (element.scrollHeight > element.clientHeight) event.stopPropagation();
  });
  const height = () => heightOf(element.textContent, node.size[0] - 3 * MARGIN) + 2 * MARGIN;
  const widget = node.addDOMWidget(WIDGET, WIDGET, element, {
    serialize: false,
    hideOnZoom: false,
    margin: MARGIN,
    getValue: () => element.textContent,
    setValue: () => {},
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false;
  return widget;
}

const said = new WeakMap(); // node -> what its box says: of its wiring, and of its run

function show(node, what) {
  const texts = { ...said.get(node), ...what };
  said.set(node, texts);
  const text = [texts.wiring, texts.report].filter(Boolean).join("\n\n");
  const known = node.widgets?.find((one) => one.name === WIDGET);
  if (!text && !known) return;
  const widget = known ?? addBox(node);
  if (widget.element.textContent === text) return;
  widget.element.textContent = text;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.graph?.setDirtyCanvas(true, true);
}

/** Nodes 2.0 shows a node's last live preview beside its result: end the preview, where the page lets us. */
function endPreview(node) {
  const stores = document.getElementById("vue-app")?.__vue_app__?.config.globalProperties.$pinia?._s;
  const id = node.graph && !node.graph.isRootGraph ? `${node.graph.id}:${node.id}` : String(node.id);
  stores?.get("nodeOutput")?.revokePreviewsByLocatorId?.(id);
}

app.registerExtension({
  name: "scdpo.reports",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith(PREFIX)) return;
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (!output?.[OUTPUT]) return;
      show(this, { report: output[OUTPUT].join("\n\n") });
      endPreview(this);
    };
  },
  setup() {
    for (const [event, what] of Object.entries({ [EVENT]: "report", [WIRING]: "wiring" })) {
      api.addEventListener(event, ({ detail }) => {
        const node = findNode(detail.node);
        if (node) show(node, { [what]: detail.text });
      });
    }
  },
});
