"use strict";

const element = (id) => document.getElementById(id);
const photo = element("photo"), drop = element("drop"), preview = element("preview"), canvas = element("canvas");
const showCells = element("show-cells");
const maxMegabytes = Number(document.body.dataset.maxMegabytes);
const PICTURE = 640; // pixels of the longer side to which a small model's picture is enlarged
let seen = null; // what the last answer told of the picture, and the picture itself

// Text from a visitor or from the server becomes text, never HTML.
function add(parent, tag, text = "", className = "") {
  const child = document.createElement(tag);
  child.textContent = text;
  child.className = className;
  return parent.appendChild(child);
}

function choosePhoto() {
  const [file] = photo.files;
  seen = null;
  element("seen").hidden = true;
  preview.hidden = true;
  URL.revokeObjectURL(preview.src);
  for (const result of document.querySelectorAll(".result")) result.replaceChildren();
  const isTooLarge = file && file.size > maxMegabytes * 1e6;
  element("photo-note").textContent = isTooLarge ? `The photo has more than ${maxMegabytes} MB; choose a smaller one.` : "";
  if (file) preview.src = URL.createObjectURL(file);
}

function draw() {
  if (seen === null) return;
  const [rows, columns] = seen.grid;
  const context = canvas.getContext("2d");
  const { naturalWidth, naturalHeight } = seen.image;
  const scale = Math.max(1, Math.round(PICTURE / Math.max(naturalWidth, naturalHeight)));
  canvas.width = scale * naturalWidth;
  canvas.height = scale * naturalHeight;
  context.drawImage(seen.image, 0, 0, canvas.width, canvas.height);
  if (!showCells.checked) return;
  const width = canvas.width / columns, height = canvas.height / rows;
  const read = new Set(seen.cells);
  context.fillStyle = "rgba(0, 0, 0, 0.65)";
  context.strokeStyle = "rgba(255, 255, 255, 0.5)";
  for (let cell = 0; cell < rows * columns; cell++) {
    const place = [(cell % columns) * width, Math.floor(cell / columns) * height, width, height];
    if (read.has(cell)) context.strokeRect(...place);
    else context.fillRect(...place);
  }
}

async function showSeen(told) {
  const image = new Image();
  image.src = told.picture;
  await image.decode();
  seen = { ...told, image };
  const all = told.grid[0] * told.grid[1], read = new Set(told.cells).size;
  element("cells-note").textContent = `This is what the model saw. It read ${read} of ${all} cells` +
    (read < all ? ", drawn at random; the others are darkened." : ".");
  preview.hidden = true;
  element("seen").hidden = false;
  draw();
}

function showAnswers(result, told) {
  for (const { title, rows } of told.tables) {
    const table = add(result, "table");
    if (title) add(table, "caption", title);
    for (const [text, probability] of rows) {
      const row = add(table, "tr"), name = add(row, "th", text);
      name.scope = "row";
      add(name, "span", "", "bar").style.width = `${100 * probability}%`;
      add(row, "td", `${(100 * probability).toFixed(1)} %`);
    }
  }
  if (told.note) add(result, "p", `Note: ${told.note}.`, "note");
}

async function ask(form, file) {
  const body = new FormData(form);
  body.append("photo", file);
  let response;
  try {
    response = await fetch(form.action, { method: "POST", body });
  } catch {
    throw new Error("The server can't be reached. Is it still running?");
  }
  const told = await response.json().catch(() => ({ error: `the server refused it (${response.status})` }));
  if (!response.ok) throw new Error(`That didn't work: ${told.error}.`);
  return told;
}

async function submit(event) {
  event.preventDefault();
  const form = event.target, [file] = photo.files;
  const result = form.querySelector(".result"), button = form.querySelector("button");
  if (!file) {
    result.replaceChildren();
    add(result, "p", "Choose a photo first.", "error");
    photo.focus();
    return;
  }
  button.disabled = true;
  try {
    const told = await ask(form, file);
    if (file !== photo.files[0]) return; // another one was chosen meanwhile
    result.replaceChildren();
    showAnswers(result, told);
    await showSeen(told);
  } catch (error) {
    result.replaceChildren();
    add(result, "p", error.message, "error");
  } finally {
    button.disabled = false;
  }
}

photo.addEventListener("change", choosePhoto);
preview.addEventListener("load", () => { preview.hidden = false; });
preview.addEventListener("error", () => {
  element("photo-note").textContent = "Your browser can't show this file; the model may be able to read it.";
});
showCells.addEventListener("change", draw);
for (const kind of ["dragover", "dragenter"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) {
    photo.files = event.dataTransfer.files;
    choosePhoto();
  }
});
for (const form of document.forms) form.addEventListener("submit", submit);
