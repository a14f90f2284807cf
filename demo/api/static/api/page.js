// Keeps the page up to date: asks for the overview once a second, and at once after a message.
"use strict";

const byId = (id) => document.getElementById(id);

// Text only ever enters the page as text, never as HTML.
function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function taskRow(task) {
  const row = document.createElement("tr");
  const state = document.createElement("td");
  state.append(element("span", task.state, `state ${task.state}`));
  const took = task.finished_at && task.started_at
    ? `${Math.max(0, new Date(task.finished_at) - new Date(task.started_at))} ms` : "";
  row.append(
    state,
    element("td", task.task.split(".").pop()),
    element("td", task.arguments.join(", "), "argument"),
    element("td", new Date(task.enqueued_at).toLocaleTimeString()),
    element("td", took),
  );
  row.dataset.id = task.id;
  return row;
}

async function refresh() {
  try {
    const answer = await fetch(document.body.dataset.overview);
    const overview = await answer.json();
    byId("task-rows").replaceChildren(...overview.tasks.map(taskRow));
    byId("message-rows").replaceChildren(
      ...overview.messages.map((message) => element("li", message.text)));
    byId("count").textContent = overview.counter;
    byId("connection").textContent = "";
  } catch {
    byId("connection").textContent = "The web server does not answer; trying again.";
  }
}

document.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const shown = byId("answer");
  try {
    const answer = await fetch(form.action, { method: "POST", body: new FormData(form) });
    const body = await answer.json();
    shown.classList.toggle("refused", !answer.ok);
    shown.textContent = answer.ok ? `Stored as task ${body.id}` : body.error;
    if (answer.ok) form.reset();
  } catch {
    shown.classList.add("refused");
    shown.textContent = "The web server does not answer; the message was not sent.";
  }
  await refresh();
});

refresh();
setInterval(refresh, 500);
