// The filter of the table of examples. Without script the page shows all of its examples.
(function () {
  "use strict";
  var form = document.getElementById("filters");
  if (!form) { return; }
  var task = document.getElementById("filter-task");
  var outcome = document.getElementById("filter-outcome");
  var count = document.getElementById("filter-count");
  var examples = Array.prototype.slice.call(document.querySelectorAll("tbody.example"));
  function apply() {
    var visible = 0;
    examples.forEach(function (example) {
      var wanted = (task.value === "" || example.getAttribute("data-task") === task.value)
        && (outcome.value === "" || example.getAttribute("data-outcome") === outcome.value);
      example.hidden = !wanted;
      if (wanted) { visible += 1; }
    });
    count.textContent = visible + " of " + examples.length + " examples on this page";
  }
  task.addEventListener("change", apply);
  outcome.addEventListener("change", apply);
  form.hidden = false;
  apply();
})();
