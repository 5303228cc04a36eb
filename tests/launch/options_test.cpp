#include "launch/options.h"

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "launch/train_options.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

class Options : public testing::Test {
 protected:
  Options() { add_train_options(table_, config_, ranks_); }
  ~Options() override { std::filesystem::remove(file_); }

  void parse(const std::vector<std::string>& arguments) { table_.parse(arguments); }
  std::string write_toml(const std::string& text) {
    std::ofstream(file_) << text;
    return file_.string();
  }
  std::string message_of(const std::vector<std::string>& arguments) {
    try {
      OptionTable table("train", "", "");
      train::Config config;
      RankOptions ranks;
      add_train_options(table, config, ranks);
      table.parse(arguments);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "no error";
  }

  std::filesystem::path file_ =
      std::filesystem::temp_directory_path() /
      ("periplus_options_" + std::to_string(::getpid()) + "_" + testing::UnitTest::GetInstance()->current_test_info()->name() + ".toml");
  OptionTable table_{"train", "purpose", "usage"};
  train::Config config_;
  RankOptions ranks_;
};

TEST_F(Options, DefaultsStayWithoutArguments) {
  const train::Config untouched;
  parse({});
  EXPECT_EQ(config_.model.layers, untouched.model.layers);
  EXPECT_EQ(config_.optimizer.betas, untouched.optimizer.betas);
  EXPECT_EQ(ranks_.deadline_seconds, untouched.run.deadline_seconds);
}

TEST_F(Options, LaterSourcesOverrideEarlierOnes) {
  const std::string file = write_toml("[model]\nlayers = 3\nhidden = 64\nffn = 128\n[run]\nseed = 9\n");
  parse({"--hidden", "32", "--config", file, "--set", "model.hidden=48", "model.ffn=96", "--set", "run.dtype=f64"});
  EXPECT_EQ(config_.model.layers, 3);
  EXPECT_EQ(config_.model.hidden, 32);
  EXPECT_EQ(config_.model.ffn, 96);
  EXPECT_EQ(config_.run.seed, 9u);
  EXPECT_EQ(config_.run.dtype, "f64");
  EXPECT_TRUE(table_.given("layers"));
  EXPECT_FALSE(table_.given("heads"));
}

TEST_F(Options, EveryKindIsReadFromEverySource) {
  const std::string file =
      write_toml("[data]\npaths = [\"a\", \"b, c\"]\n[optimizer]\nbetas = [0.5, 0.25]\nclip_norm = 2\n[run]\ntrace = true\n");
  parse({"--config", file, "--set", "model.tie_embeddings=false", "optimizer.weight_decay=1e-2"});
  EXPECT_EQ(config_.data.paths, (std::vector<std::string>{"a", "b, c"}));
  EXPECT_EQ(config_.optimizer.betas, (std::vector<double>{0.5, 0.25}));
  EXPECT_EQ(config_.optimizer.clip_norm, 2.0);
  EXPECT_EQ(config_.optimizer.weight_decay, 1e-2);
  EXPECT_TRUE(config_.run.trace);
  EXPECT_FALSE(config_.model.tie_embeddings);
}

TEST_F(Options, ListsTakeSeveralWordsSeveralFlagsAndCommas) {
  parse({"--data", "x", "y", "--steps", "5", "--data", "z", "--betas", "0.8,0.9", "--set", "run.directory=a=b"});
  EXPECT_EQ(config_.data.paths, (std::vector<std::string>{"x", "y", "z"}));
  EXPECT_EQ(config_.optimizer.betas, (std::vector<double>{0.8, 0.9}));
  EXPECT_EQ(config_.run.steps, 5);
  EXPECT_EQ(config_.run.directory, "a=b");
}

TEST_F(Options, SetTakesTomlLists) {
  parse({"--set", "data.paths=[\"p\", \"q\"]"});
  EXPECT_EQ(config_.data.paths, (std::vector<std::string>{"p", "q"}));
}

TEST_F(Options, UnknownNamesGetTheNearestOne) {
  EXPECT_EQ(message_of({"--stpes", "3"}), "unknown option '--stpes'; did you mean '--steps'?");
  EXPECT_EQ(message_of({"--kv_heads=3"}), "unknown option '--kv_heads'; did you mean '--kv-heads'?");
  EXPECT_EQ(message_of({"--quetzalcoatl"}), "unknown option '--quetzalcoatl'; periplus train --help lists all");
  EXPECT_EQ(message_of({"--set", "model.layer=3"}), "--set: unknown key 'model.layer'; did you mean 'model.layers'?");
  EXPECT_EQ(message_of({"--set", "modle.layers=3"}), "--set: unknown table [modle]; did you mean 'model'?");
  EXPECT_EQ(message_of({"--set", "foo.bar=3"}), "--set: unknown table [foo]; there are: data, run, parallel, model, optimizer");
  EXPECT_EQ(message_of({"--set", "model.fog=3"}), "--set: unknown key 'model.fog'; periplus train --help lists all")
      << "a known table does not make a name similar";
  EXPECT_EQ(message_of({"--layout", "zigzig"}).find("--layout: 'zigzig' is not one of contiguous, zigzag"), 0u);
}

TEST_F(Options, FileErrorsNameLineAndColumn) {
  const std::string name = file_.filename().string();
  EXPECT_EQ(message_of({"--config", write_toml("[model]\nlayres = 3\n")}),
            name + ":2:1: unknown key 'model.layres'; did you mean 'model.layers'?");
  EXPECT_EQ(message_of({"--config", write_toml("[optimiser]\nclip_norm = 3\n")}),
            name + ":2:1: unknown table [optimiser]; did you mean 'optimizer'?");
  EXPECT_EQ(message_of({"--config", write_toml("[modell]\n")}), name + ":1:2: unknown table [modell]; did you mean 'model'?");
  EXPECT_EQ(message_of({"--config", write_toml("layers = 3\n")}), name + ":1:1: unknown key 'layers'; did you mean 'model.layers'?");
  EXPECT_EQ(message_of({"--config", write_toml("[model]\nlayers = \"six\"\n")}), name + ":2:1: model.layers: 'six' is not a whole number");
  EXPECT_EQ(message_of({"--config", write_toml("[model]\nlayers = 1.5\n")}), name + ":2:1: model.layers: '1.5' is not a whole number");
  EXPECT_EQ(message_of({"--config", write_toml("[model]\nlayers = [1]\n")}), name + ":2:1: model.layers: a list is not a whole number");
  EXPECT_EQ(message_of({"--config", write_toml("[model]\nlayers = 1979-05-27\n")}),
            name + ":2:1: model.layers: dates, tables and lists of lists are not values of any key");
  EXPECT_EQ(message_of({"--config", write_toml("[model]\nlayers = = 3\n")}).find(name + ":2:10: "), 0u);
  EXPECT_EQ(message_of({"--config", write_toml("[model]\nlayers = {}\n")}),
            name + ":2:1: model.layers: dates, tables and lists of lists are not values of any key");
  EXPECT_EQ(message_of({"--config", write_toml("[=]\n")}).find(name + ":1:2: "), 0u);
  EXPECT_EQ(message_of({"--config", write_toml("[[[run]]]\n")}).find(name + ":1:3: "), 0u);
  EXPECT_EQ(message_of({"--config", "/no/such/file.toml"}), "--config: there is no file '/no/such/file.toml'");
}

TEST_F(Options, EmptyKnownTableIsFine) { EXPECT_EQ(message_of({"--config", write_toml("[model]\n[run]\nseed = 2\n")}), "no error"); }

TEST_F(Options, WrongTypesAndRangesAreRefused) {
  EXPECT_EQ(message_of({"--steps", "many"}), "--steps: 'many' is not a whole number");
  EXPECT_EQ(message_of({"--steps", "3x"}), "--steps: '3x' is not a whole number");
  EXPECT_EQ(message_of({"--steps", "1e3"}), "--steps: '1e3' is not a whole number");
  EXPECT_EQ(message_of({"--steps", "0"}), "--steps: 0 is out of range; it must be at least 1");
  EXPECT_EQ(message_of({"--steps", "99999999999999999999"}), "--steps: '99999999999999999999' is not a whole number");
  EXPECT_EQ(message_of({"--ranks", "5000"}), "--ranks: 5000 is out of range; it must lie between 0 and 1024");
  EXPECT_EQ(message_of({"--learning-rate", "nan"}), "--learning-rate: nan is out of range; it must be a finite number");
  EXPECT_EQ(message_of({"--betas", "0.9,2"}), "--betas: 2 is out of range; it must lie between 0 and 1");
  EXPECT_EQ(message_of({"--trace=maybe"}), "--trace: 'maybe' is not true or false");
  EXPECT_EQ(message_of({"--set", "model.layers"}), "--set: 'model.layers' is not of the form table.name=value");
}

TEST_F(Options, NothingIsSilentlyIgnored) {
  EXPECT_EQ(message_of({"--steps", "3", "--steps", "4"}), "--steps is given twice; give it once");
  EXPECT_NE(message_of({"stray"}).find("unexpected argument 'stray'"), std::string::npos);
  EXPECT_NE(message_of({"--steps", "3", "4"}).find("unexpected argument '4'"), std::string::npos);
  EXPECT_EQ(message_of({"--steps"}), "--steps needs a value: --steps N");
  EXPECT_EQ(message_of({"--heads="}), "--heads needs a value: --heads N");
  EXPECT_EQ(message_of({"--trace="}), "--trace needs a value: --trace true|false");
  EXPECT_NE(message_of({"-s", "3"}).find("unexpected argument '-s'"), std::string::npos);
}

TEST_F(Options, NegativeNumbersAreValues) {
  OptionTable table("plan", "", "");
  std::vector<std::int64_t> window;
  table.add({.flag = "window", .target = &window});
  table.parse(std::vector<std::string>{"--window", "-1,3"});
  EXPECT_EQ(window, (std::vector<std::int64_t>{-1, 3}));
}

TEST_F(Options, ResolvedTomlNamesOriginsAndReadsBack) {
  const std::string file = write_toml("[model]\nlayers = 3\n");
  parse({"--config", file, "--set", "model.hidden=48", "--data", "a \"b\"\\", "--learning-rate", "3"});
  const std::string text = table_.resolved_toml();
  const auto line_of = [&](const std::string& key) {
    const std::size_t begin = text.find("\n" + key + " = ") + 1;
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  EXPECT_NE(line_of("layers").find("# " + file_.filename().string() + ":2"), std::string::npos) << text;
  EXPECT_NE(line_of("hidden").find("# --set"), std::string::npos);
  EXPECT_NE(line_of("paths").find("# --data"), std::string::npos);
  EXPECT_NE(line_of("ffn").find("# default"), std::string::npos);

  const std::string copy = write_toml(text);
  OptionTable table("train", "", "");
  train::Config config;
  RankOptions ranks;
  add_train_options(table, config, ranks);
  table.parse(std::vector<std::string>{"--config", copy});
  EXPECT_EQ(config.model.layers, 3);
  EXPECT_EQ(config.model.hidden, 48);
  EXPECT_EQ(config.data.paths, (std::vector<std::string>{"a \"b\"\\"}));
  EXPECT_EQ(config.optimizer.learning_rate, 3.0);
}

TEST_F(Options, AStrategyTypedBesideAPlannerIsRefusedEvenTheDefault) {
  const auto refusal = [](const std::vector<std::string>& arguments) -> std::string {
    OptionTable table("train", "", "");
    train::Config config;
    RankOptions ranks;
    add_train_options(table, config, ranks);
    table.parse(arguments);
    try {
      check_planner_options(table, config);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal({"--planner", "flexible", "--strategy", "ring"}),
            "--strategy has no effect with --planner flexible, which chooses for each group how attention is distributed; leave one out");
  EXPECT_NE(refusal({"--planner", "static", "--set", "parallel.pieces=1"}).find("--pieces has no effect with --planner static"),
            std::string::npos);
  EXPECT_EQ(refusal({"--planner", "flexible"}), "");
  EXPECT_EQ(refusal({"--strategy", "ring"}), "");
  EXPECT_EQ(refusal({"--planner", "none", "--strategy", "ring"}), "");
  // What --dump-config writes holds every key and can be read again.
  parse({"--planner", "flexible"});
  EXPECT_EQ(refusal({"--config", write_toml(table_.resolved_toml())}), "");
}

TEST_F(Options, HelpListsEveryFlagKeyAndDefault) {
  parse({"--help"});
  EXPECT_TRUE(table_.help_wanted());
  const std::string page = table_.help();
  for (const char* text :
       {"--kv-heads N", "[model.kv_heads = 1]", "[data.context = 8192]", "--set", "--config FILE", "--json", "auto | bf16 | f32 | f64"}) {
    EXPECT_NE(page.find(text), std::string::npos) << text << "\n" << page;
  }
}

TEST_F(Options, HelpWithoutKeysSaysNothingOfFiles) {
  OptionTable table("doctor", "", "");
  int samples = 7;
  table.add({.flag = "samples", .target = &samples, .value = "N", .help = "Samples."});
  table.parse(std::vector<std::string>{});
  EXPECT_EQ(table.help().find("TOML"), std::string::npos) << table.help();
  EXPECT_NE(table.help().find("Samples. Default: 7.\n"), std::string::npos) << table.help();
}

}  // namespace
}  // namespace periplus::launch
