// Pictures of files that the browser does not decode, such as DICOM and TIFF: the service reads them.

import { writePicture } from "./api.js";

// Whether the file itself is at fault: the answer would be the same again.
export const refused = (error) => error.status === 413 || error.status === 422;

export class Previews {
  #answers = new WeakMap(); // by file: its picture, or the error that refused it
  #open = null; // the request for a picture: {file, request, answer}

  // The file's picture as a Blob. It is asked for once, and for one file at a time.
  async of(file) {
    const answer = this.#answers.get(file);
    if (answer instanceof Error) throw answer;
    if (answer) return answer;
    if (this.#open?.file !== file) {
      this.cancel();
      const request = new AbortController();
      this.#open = { file, request, answer: this.#ask(file, request.signal) };
    }
    return this.#open.answer;
  }

  // Cancels the request for a picture, unless it is this file's.
  cancel(file = null) {
    if (!this.#open || this.#open.file === file) return;
    this.#open.request.abort();
    this.#open = null;
  }

  async #ask(file, signal) {
    try {
      const picture = await writePicture(file, signal);
      this.#answers.set(file, picture);
      return picture;
    } catch (error) {
      if (refused(error)) this.#answers.set(file, error);
      throw error;
    } finally {
      if (!signal.aborted) this.#open = null;
    }
  }
}
