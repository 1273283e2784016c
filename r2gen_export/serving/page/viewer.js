// One picture with window and level. It works on a copy of 8 bits and at most 1024 pixels a side.

const MOST = 1024;
const START = { level: 128, width: 256 };

export class Viewer {
  constructor({ canvas, level, width, reset }) {
    this.canvas = canvas;
    this.inputs = { level, width };
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    for (const [name, input] of Object.entries(this.inputs)) {
      input.addEventListener("input", () => this.set({ [name]: Number(input.value) }));
    }
    reset.addEventListener("click", () => this.set(START));
    canvas.addEventListener("keydown", (event) => this.#pressed(event));
    canvas.addEventListener("pointerdown", (event) => this.#grabbed(event));
    canvas.addEventListener("pointermove", (event) => this.#dragged(event));
    this.set(START);
  }

  // Shows a file, or the picture of it that the service made; false when the browser cannot. The window stays while the
  // file does.
  async show(file, picture = file) {
    if (file === this.shown) return true;
    this.shown = null;
    this.file = file;
    let bitmap;
    try {
      bitmap = await createImageBitmap(picture);
    } catch {
      return false;
    }
    if (this.file !== file) return true; // another was chosen meanwhile
    const scale = Math.min(1, MOST / Math.max(bitmap.width, bitmap.height));
    this.canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    this.canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    this.context.drawImage(bitmap, 0, 0, this.canvas.width, this.canvas.height);
    bitmap.close();
    this.source = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    this.shown = file;
    this.set(START);
    return true;
  }

  set(values) {
    this.window = { ...this.window, ...values };
    this.window.level = clamp(this.window.level, this.inputs.level);
    this.window.width = clamp(this.window.width, this.inputs.width);
    for (const [name, input] of Object.entries(this.inputs)) input.value = String(this.window[name]);
    this.canvas.dataset.window = `${this.window.level}/${this.window.width}`;
    if (this.source) this.#draw();
  }

  #draw() {
    const { level, width } = this.window;
    const table = new Uint8ClampedArray(256);
    // DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT: at level 128 and width 256 the values stay as they are.
    for (let value = 0; value < 256; value += 1) table[value] = Math.round(((value - level) / width + 0.5) * 256);
    const { data } = this.source;
    const shown = this.context.createImageData(this.source.width, this.source.height);
    for (let at = 0; at < data.length; at += 4) {
      for (let channel = 0; channel < 3; channel += 1) shown.data[at + channel] = table[data[at + channel]];
      shown.data[at + 3] = data[at + 3];
    }
    this.context.putImageData(shown, 0, 0);
  }

  #pressed(event) {
    const step = event.shiftKey ? 16 : 4;
    const { level, width } = this.window;
    const change = {
      ArrowLeft: { width: width - step }, ArrowRight: { width: width + step },
      ArrowUp: { level: level + step }, ArrowDown: { level: level - step }, Home: START,
    }[event.key];
    if (!change || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.set(change);
  }

  #grabbed(event) {
    // A finger scrolls the page; it has the sliders.
    if (event.pointerType === "touch" || event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.grab = { x: event.clientX, y: event.clientY, ...this.window };
  }

  #dragged(event) {
    if (!this.grab || !(event.buttons & 1)) return;
    const { x, y, level, width } = this.grab;
    this.set({ width: Math.round(width + event.clientX - x), level: Math.round(level + y - event.clientY) });
  }
}

const clamp = (value, input) => Math.min(Number(input.max), Math.max(Number(input.min), value));
